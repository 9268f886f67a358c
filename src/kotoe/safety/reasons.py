"""Why a prompt or a picture isn't allowed, in the language of the prompt; in English where it is another than these."""

from __future__ import annotations

from collections.abc import Iterable

from kotoe.record import Found

LANGUAGES = ("en", "ja", "zh", "ko")
CATEGORIES = {
    "sexual": {"en": "sexual content", "ja": "性的な内容", "zh": "色情内容", "ko": "성적인 내용"},
    "sexual-minors": {
        "en": "sexual content with minors",
        "ja": "未成年者に関わる性的な内容",
        "zh": "涉及未成年人的色情内容",
        "ko": "미성년자와 관련된 성적인 내용",
    },
    "violence": {"en": "graphic violence", "ja": "残虐な暴力", "zh": "血腥暴力", "ko": "잔혹한 폭력"},
}
TERMS = {  # {what}: quoted terms, {category}
    "en": "{what} in the prompt: {category}",
    "ja": "プロンプトの{what}: {category}",
    "zh": "提示词中的{what}: {category}",
    "ko": "프롬프트의 {what}: {category}",
}
QUOTES = {"en": ("“", "”", ", "), "ja": ("「", "」", ""), "zh": ("“", "”", "、"), "ko": ("‘", "’", ", ")}
PICTURE = {
    "en": "the picture is {score} over the checker's threshold for {what}",
    "ja": "画像は検査器の{what}のしきい値を {score} 上回っています",
    "zh": "图片超出检查器的{what}阈值 {score}",
    "ko": "그림이 검사기의 {what} 기준값을 {score} 넘었습니다",
}
BLOCKED = {
    "en": "Blocked, nothing was drawn: {reason}",
    "ja": "描画しませんでした（ブロック）: {reason}",
    "zh": "已拦截，未绘制: {reason}",
    "ko": "차단되어 그리지 않았습니다: {reason}",
}
CONCEPT = {"en": "concept {n}", "ja": "概念 {n} ", "zh": "概念 {n} ", "ko": "개념 {n}"}


def spoken(language: str | None) -> str:
    """Which of LANGUAGES reasons are given in for a BCP 47 tag."""
    base = "" if language is None else language.lower().split("-")[0]
    return {"yue": "zh"}.get(base, base if base in LANGUAGES else "en")


def of_prompt(found: Iterable[Found], language: str | None) -> str:
    """The reason for terms found in a prompt, category by category."""
    tongue = spoken(language)
    left, right, between = QUOTES[tongue]
    by_category: dict[str, dict[str, None]] = {}
    for one in found:
        by_category.setdefault(one.category, {})[f"{left}{one.written}{right}"] = None
    return "; ".join(
        TERMS[tongue].format(what=between.join(written), category=CATEGORIES[category][tongue])
        for category, written in by_category.items()
    )


def blocked(reason: str, language: str | None) -> str:
    """What who asked is told where a reason keeps a picture from being drawn."""
    return BLOCKED[spoken(language)].format(reason=reason)


def of_picture(concept: int, score: float, language: str | None) -> str:
    """The reason for a picture whose largest score is that of a concept, counted from 0."""
    tongue = spoken(language)
    return PICTURE[tongue].format(what=CONCEPT[tongue].format(n=concept), score=f"{score:.3f}")
