"""How each language speaks of scenes: colours, places, sizes, relations, templates, and the everyday words for things.

One `Language` is one table; adding a language is adding one. In the first entry of every list stands what the fixed
evaluation caption says, the rest are other ways of saying the same. Template fields:

    {x} {y}     the objects (two are read "x is <relation> of y"); {x.a} with its article, {x.ga} {x.wa} {x.eun} its
                Korean particles
    {bg}        the background colour before its noun; {bg.a} with its article, {bg.alone} standing alone
    {at}        the place in the picture; {at.short} in a list of words
    {rel}       the relation; {p1} {p2} the places of x and y
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Words = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Language:
    """One language's way of describing scenes. Field order of `single` and `pair`: keys are (colour said, place or
    relation said)."""

    tag: str
    colours: Mapping[str, Words]  # before the noun "background"
    colour_nouns: Mapping[str, Words]  # standing alone
    sizes: Mapping[str, Words]
    places: Mapping[str, Words]
    short_places: Mapping[str, Words]
    relations: Mapping[str, Words]
    sides: Mapping[str, Words]  # where the first object of a relation stands
    single: Mapping[tuple[bool, bool], Words]
    pair: Mapping[tuple[bool, bool], Words]
    forms: Callable[[str], SimpleNamespace]  # a noun phrase with its article or particles
    join: str  # between a size word and the noun
    things: Mapping[str, str]  # glyph: "what to call it, another word, another word"


class Form(SimpleNamespace):
    """A phrase and its inflected forms; formats as the plain phrase."""

    n: str

    def __format__(self, spec: str) -> str:
        return self.n


# ---- English --------------------------------------------------------------------------------------------------------

_PLURAL = frozenset("people men women feet children teeth mermaids police".split())
_SINGULAR_S = frozenset("tennis bus glass lens chess mars news christmas dress compass iris".split())
_THE = frozenset(["statue of liberty", "kaaba", "milky way", "tokyo tower", "sun", "new moon", "full moon"])
_MASS = frozenset(
    """bread,baguette bread,flatbread,bacon,broccoli,garlic,coral,cooked rice,rice,curry rice,spaghetti,oden,sushi,dango
    shaved ice,ice,ice cream,soft ice cream,candy,custard,sake,bubble tea,mate,salt,butter,popcorn,canned food,camping
    mount fuji,wood,building construction,construction,fog,high voltage,electricity,lightning,tennis,bowling,cricket
    field hockey,ice hockey,lacrosse,ping pong,badminton,table tennis,yarn,thread,dna,soap,coffee,tea,milk,honey,money
    chocolate,cheese,curry,ramen,golf,fishing,baseball,basketball,volleyball,softball,american football,rugby football
    fire,smoke,sweat,mahjong,archery,corn,luggage,meat,fondue,falafel,shrimp,fried shrimp,sheaf of rice,camping gear
    tornado warning,pouring liquid,meat on bone,green salad,flower playing cards,performing arts,rain,snow,wind,water""".replace(
        "\n", ","
    )
    .replace(", ", ",")
    .replace("    ", "")
    .split(",")
) - {"cricket", "fondue", "green salad"}
_PREPOSITIONS = (
    " with ",
    " of ",
    " in ",
    " on ",
    " showing ",
    " at ",
    " for ",
    " from ",
    " behind ",
    " over ",
    " without ",
)
_A_DESPITE_VOWEL = ("uni", "use", "euro", "ewe", "one", "u-", "ufo", "eu", "uk", "usa")
_AN_DESPITE_CONSONANT = ("hour", "honest", "x-ray", "sos", "fm", "lp", "mp3", "ng ", "sd card")


def _english(phrase: str) -> Form:
    return Form(n=phrase, a=with_article(phrase))


def with_article(phrase: str) -> str:
    """'a cat', 'an apple', 'grapes', 'the Statue of Liberty': the phrase as English puts it into a sentence."""
    bare = phrase.lower()
    for size in ("small ", "large ", "tiny ", "little ", "big ", "huge "):
        bare = bare.removeprefix(size)
    if bare in _THE:
        return f"the {phrase}"
    head = bare
    for preposition in _PREPOSITIONS:
        head = head.partition(preposition)[0]
    last = head.split()[-1]
    plural = last in _PLURAL or (
        last.endswith("s") and not last.endswith(("ss", "us", "is")) and last not in _SINGULAR_S
    )
    if bare in _MASS or plural or "o'clock" in bare or bare.endswith("-thirty"):
        return phrase
    return f"{article(phrase)} {phrase}"


def article(phrase: str) -> str:
    """'a' or 'an', by how the phrase sounds."""
    low = phrase.lower()
    if low.startswith(_AN_DESPITE_CONSONANT):
        return "an"
    return "an" if low[0] in "aeiou8" and not low.startswith(_A_DESPITE_VOWEL) else "a"


_EN_PLACES = {
    "centre": "in the center,in the middle",
    "top left": "in the top left corner,in the upper left corner,at the top left",
    "top": "at the top",
    "top right": "in the top right corner,in the upper right corner,at the top right",
    "left": "on the left side,on the left",
    "right": "on the right side,on the right",
    "bottom left": "in the bottom left corner,in the lower left corner,at the bottom left",
    "bottom": "at the bottom",
    "bottom right": "in the bottom right corner,in the lower right corner,at the bottom right",
}


def _split(table: Mapping[str, str]) -> dict[str, Words]:
    return {k: tuple(v.split(",")) for k, v in table.items()}


_EN_COLOURS = _split(
    {c: c for c in "white black red orange yellow green blue purple pink brown".split()}
    | {"light blue": "light blue,sky blue", "grey": "gray,grey"}
)

ENGLISH = Language(
    tag="en",
    colours=_EN_COLOURS,
    colour_nouns=_EN_COLOURS,
    sizes=_split({"small": "small,tiny,little", "large": "large,big,huge"}),
    places=_split(_EN_PLACES),
    short_places=_split(
        {
            "centre": "center,middle",
            "top left": "top left,upper left",
            "top right": "top right,upper right",
            "bottom left": "bottom left,lower left",
            "bottom right": "bottom right,lower right",
        }
        | {p: p for p in ("top", "left", "right", "bottom")}
    ),
    relations=_split(
        {
            "left_of": "to the left of,left of",
            "right_of": "to the right of,right of",
            "above": "above",
            "below": "below,under",
        }
    ),
    sides=_split(
        {
            "left_of": "on the left",
            "right_of": "on the right",
            "above": "at the top",
            "below": "at the bottom",
        }
    ),
    single={
        (True, False): (
            "{x.a} on {bg.a} background",
            "{bg} background, {x}",
            "{x} on {bg.a} background",
            "{x}, {bg} background",
            "{bg.a} background with {x.a}",
            "{x.a} against {bg.a} background",
            "a picture of {x.a} on {bg.a} background",
            "a drawing of {x.a}, {bg} background",
        ),
        (True, True): (
            "{x.a} {at} on {bg.a} background",
            "{bg} background, {x.a} {at}",
            "{x.a} {at} of {bg.a} background",
            "{x}, {at.short}, {bg} background",
            "{bg.a} background with {x.a} {at}",
            "a picture of {x.a} {at}, {bg} background",
        ),
        (False, False): ("{x.a}", "{x}", "a picture of {x.a}", "a drawing of {x.a}"),
        (False, True): ("{x.a} {at}", "{x} {at}", "{x}, {at.short}", "a picture of {x.a} {at}"),
    },
    pair={
        (True, True): (
            "{x.a} {rel} {y.a} on {bg.a} background",
            "{bg} background, {x.a} {rel} {y.a}",
            "{x} {rel} {y}, {bg} background",
            "{x.a} {p1} and {y.a} {p2} on {bg.a} background",
            "{bg.a} background with {x.a} {rel} {y.a}",
            "a picture of {x.a} {rel} {y.a}, {bg} background",
        ),
        (True, False): (
            "{x.a} and {y.a} on {bg.a} background",
            "{bg} background, {x} and {y}",
            "{bg.a} background with {x.a} and {y.a}",
        ),
        (False, True): (
            "{x.a} {rel} {y.a}",
            "{x} {rel} {y}",
            "{x.a} {p1} and {y.a} {p2}",
            "a picture of {x.a} {rel} {y.a}",
        ),
        (False, False): ("{x.a} and {y.a}", "{x} and {y}", "a picture of {x.a} and {y.a}"),
    },
    forms=_english,
    join=" ",
    things={
        "🚗": "car, automobile",
        "🍎": "apple, red apple",
        "☕": "cup of coffee, coffee, hot beverage",
        "🌫️": "fog",
        "🌁": "foggy city",
        "🔒": "locked padlock, padlock",
        "🔓": "unlocked padlock, open padlock",
        "🔏": "padlock with pen",
        "🔐": "padlock with key",
        "🍳": "frying pan with egg, fried egg",
        "✈️": "airplane, plane",
        "⚽": "soccer ball, football",
    },
)

# ---- Japanese -------------------------------------------------------------------------------------------------------

JAPANESE = Language(
    tag="ja",
    colours=_split(
        {
            "white": "白い,白の",
            "black": "黒い,黒の",
            "red": "赤い,赤の",
            "orange": "オレンジ色の,オレンジの",
            "yellow": "黄色い,黄色の",
            "green": "緑の,緑色の",
            "light blue": "水色の",
            "blue": "青い,青の,青色の",
            "purple": "紫の,紫色の",
            "pink": "ピンクの,ピンク色の",
            "brown": "茶色い,茶色の",
            "grey": "灰色の,グレーの",
        }
    ),
    colour_nouns=_split(
        {
            "white": "白",
            "black": "黒",
            "red": "赤",
            "orange": "オレンジ色,オレンジ",
            "yellow": "黄色",
            "green": "緑,緑色",
            "light blue": "水色",
            "blue": "青,青色",
            "purple": "紫,紫色",
            "pink": "ピンク",
            "brown": "茶色",
            "grey": "灰色,グレー",
        }
    ),
    sizes=_split({"small": "小さな,小さい", "large": "大きな,大きい"}),
    places=_split(
        {
            "centre": "中央,真ん中",
            "top left": "左上",
            "top": "上部,上のほう",
            "top right": "右上",
            "left": "左側,左",
            "right": "右側,右",
            "bottom left": "左下",
            "bottom": "下部,下のほう",
            "bottom right": "右下",
        }
    ),
    short_places=_split(
        {
            "centre": "中央",
            "top left": "左上",
            "top": "上",
            "top right": "右上",
            "left": "左",
            "right": "右",
            "bottom left": "左下",
            "bottom": "下",
            "bottom right": "右下",
        }
    ),
    relations=_split({"left_of": "左,左側", "right_of": "右,右側", "above": "上", "below": "下"}),
    sides=_split({"left_of": "左,左側", "right_of": "右,右側", "above": "上", "below": "下"}),
    single={
        (True, False): (
            "{bg}背景に{x}",
            "{bg}背景の{x}",
            "{x}、{bg}背景",
            "{bg}背景、{x}",
            "{bg}背景に描かれた{x}",
            "{x}の絵、背景は{bg.alone}",
            "背景は{bg.alone}、{x}",
        ),
        (True, True): (
            "{bg}背景の{at}に{x}",
            "{bg}背景、{at}に{x}",
            "{at}に{x}、{bg}背景",
            "{x}、{at.short}、{bg}背景",
            "{bg}背景の{at}に描かれた{x}",
        ),
        (False, False): ("{x}", "{x}の絵", "{x}のイラスト"),
        (False, True): ("{at}に{x}", "{x}、{at.short}", "{at}に描かれた{x}"),
    },
    pair={
        (True, True): (
            "{y}の{rel}に{x}、{bg}背景",
            "{bg}背景、{y}の{rel}に{x}",
            "{bg}背景に、{p1}が{x}、{p2}が{y}",
            "{p1}に{x}、{p2}に{y}、{bg}背景",
            "{y}の{rel}にある{x}、{bg}背景",
        ),
        (True, False): ("{bg}背景に{x}と{y}", "{x}と{y}、{bg}背景", "{bg}背景、{x}と{y}"),
        (False, True): ("{y}の{rel}に{x}", "{p1}に{x}、{p2}に{y}", "{p1}が{x}、{p2}が{y}"),
        (False, False): ("{x}と{y}", "{x}と{y}の絵"),
    },
    forms=lambda phrase: Form(n=phrase),
    join="",
    things={
        "🐈": "猫, ネコ",
        "🐕": "犬, イヌ",
        "🍎": "りんご, リンゴ, 赤いりんご, 赤リンゴ",
        "🚗": "車, 自動車, クルマ",
        "☕": "コーヒー, 温かい飲み物",
    },
)

# ---- Chinese (Simplified) -------------------------------------------------------------------------------------------

_ZH_COLOURS = _split(
    {
        "white": "白色",
        "black": "黑色",
        "red": "红色",
        "orange": "橙色,橘色",
        "yellow": "黄色",
        "green": "绿色",
        "light blue": "浅蓝色,天蓝色",
        "blue": "蓝色",
        "purple": "紫色",
        "pink": "粉色,粉红色",
        "brown": "棕色,褐色",
        "grey": "灰色",
    }
)
_ZH_PLACES = _split(
    {
        "centre": "中央,中间",
        "top left": "左上角",
        "top": "顶部,上方",
        "top right": "右上角",
        "left": "左侧,左边",
        "right": "右侧,右边",
        "bottom left": "左下角",
        "bottom": "底部,下方",
        "bottom right": "右下角",
    }
)
_ZH_SIDES = _split(
    {"left_of": "左边,左侧", "right_of": "右边,右侧", "above": "上方,上面", "below": "下方,下面"}
)

CHINESE = Language(
    tag="zh",
    colours=_ZH_COLOURS,
    colour_nouns=_ZH_COLOURS,
    sizes=_split({"small": "小小的,很小的", "large": "大大的,很大的,巨大的"}),
    places=_ZH_PLACES,
    short_places=_ZH_PLACES,
    relations=_ZH_SIDES,
    sides=_ZH_SIDES,
    single={
        (True, False): (
            "{bg}背景上的{x}",
            "{x}，{bg}背景",
            "{bg}背景，{x}",
            "{bg}背景的{x}",
            "{bg}背景上有{x}",
            "{bg}背景中的{x}",
            "以{bg}为背景的{x}",
            "{x}的图片，{bg}背景",
        ),
        (True, True): (
            "{bg}背景{at}的{x}",
            "{bg}背景，{at}有{x}",
            "{x}在{bg}背景的{at}",
            "{x}，{at.short}，{bg}背景",
            "{bg}背景的{at}画着{x}",
        ),
        (False, False): ("{x}", "{x}的图片", "{x}的画"),
        (False, True): ("{at}的{x}", "{at}有{x}", "{x}，{at.short}"),
    },
    pair={
        (True, True): (
            "{x}在{y}的{rel}，{bg}背景",
            "{bg}背景，{x}在{y}的{rel}",
            "{bg}背景上，{p1}是{x}，{p2}是{y}",
            "{p1}是{x}，{p2}是{y}，{bg}背景",
            "{y}{rel}的{x}，{bg}背景",
        ),
        (True, False): ("{bg}背景上的{x}和{y}", "{x}和{y}，{bg}背景", "{bg}背景，{x}和{y}"),
        (False, True): ("{x}在{y}的{rel}", "{p1}是{x}，{p2}是{y}", "{y}{rel}的{x}"),
        (False, False): ("{x}和{y}", "{x}和{y}的图片"),
    },
    forms=lambda phrase: Form(n=phrase),
    join="",
    things={"🍎": "苹果, 红苹果", "🚗": "汽车, 轿车, 小汽车", "☕": "咖啡, 热饮"},
)

# ---- Korean ---------------------------------------------------------------------------------------------------------

_FINAL_DIGITS = {"0": 21, "1": 8, "3": 16, "6": 1, "7": 8, "8": 8}  # 영 일 삼 육 칠 팔
_FINAL_LATIN = {"l": 8, "m": 16, "n": 4, "r": 8}  # 엘 엠 엔 알
_RIEUL = 8


def final_consonant(word: str) -> int:
    """The last syllable's final consonant as Unicode numbers it (0 none, 8 ㄹ), also after digits and Latin letters."""
    for char in reversed(word):
        if "가" <= char <= "힣":
            return (ord(char) - ord("가")) % 28
        if char.isdigit():
            return _FINAL_DIGITS.get(char, 0)
        if char.isalpha():
            return _FINAL_LATIN.get(char.lower(), 0)
    return 0


def _korean(phrase: str) -> Form:
    final = final_consonant(phrase)
    return Form(
        n=phrase,
        ga="이" if final else "가",
        eun="은" if final else "는",
        reul="을" if final else "를",
        wa="과" if final else "와",
        ro="으로" if final and final != _RIEUL else "로",
    )


_KO_SIDES = _split({"left_of": "왼쪽", "right_of": "오른쪽", "above": "위쪽,위", "below": "아래쪽,아래"})
_KO_PLACES = _split(
    {
        "centre": "가운데,중앙",
        "top left": "왼쪽 위,왼쪽 상단",
        "top": "위쪽,상단",
        "top right": "오른쪽 위,오른쪽 상단",
        "left": "왼쪽",
        "right": "오른쪽",
        "bottom left": "왼쪽 아래,왼쪽 하단",
        "bottom": "아래쪽,하단",
        "bottom right": "오른쪽 아래,오른쪽 하단",
    }
)

KOREAN = Language(
    tag="ko",
    colours=_split(
        {
            "white": "하얀,흰,흰색,하얀색",
            "black": "검은,까만,검은색,검정",
            "red": "빨간,빨간색",
            "orange": "주황색,주황,오렌지색",
            "yellow": "노란,노란색",
            "green": "초록색,초록,녹색",
            "light blue": "하늘색",
            "blue": "파란,파란색",
            "purple": "보라색,보라",
            "pink": "분홍색,분홍,핑크색",
            "brown": "갈색",
            "grey": "회색",
        }
    ),
    colour_nouns=_split(
        {
            "white": "흰색,하얀색",
            "black": "검은색,검정색",
            "red": "빨간색",
            "orange": "주황색",
            "yellow": "노란색",
            "green": "초록색,녹색",
            "light blue": "하늘색",
            "blue": "파란색",
            "purple": "보라색",
            "pink": "분홍색,핑크색",
            "brown": "갈색",
            "grey": "회색",
        }
    ),
    sizes=_split({"small": "작은,조그만", "large": "큰,커다란"}),
    places=_KO_PLACES,
    short_places=_KO_PLACES,
    relations=_KO_SIDES,
    sides=_KO_SIDES,
    single={
        (True, False): (
            "{bg} 배경의 {x}",
            "{bg} 배경에 {x}",
            "{x}, {bg} 배경",
            "{bg} 배경, {x}",
            "{bg} 배경 위의 {x}",
            "{bg} 배경에 있는 {x}",
            "{bg} 배경에 {x}{x.ga} 있는 그림",
            "{x} 그림, 배경은 {bg.alone}",
        ),
        (True, True): (
            "{bg} 배경 {at}에 {x}",
            "{bg} 배경 {at}에 있는 {x}",
            "{bg} 배경, {at}에 {x}",
            "{x}, {at.short}, {bg} 배경",
            "{bg} 배경의 {at}에 {x}{x.ga} 있는 그림",
        ),
        (False, False): ("{x}", "{x} 그림", "{x}{x.reul} 그린 그림"),
        (False, True): ("{at}에 {x}", "{at}에 있는 {x}", "{x}, {at.short}"),
    },
    pair={
        (True, True): (
            "{y} {rel}에 {x}, {bg} 배경",
            "{bg} 배경, {y} {rel}에 {x}",
            "{y}의 {rel}에 있는 {x}, {bg} 배경",
            "{bg} 배경에 {x}{x.ga} {y}의 {rel}에 있는 그림",
            "{p1}에 {x}, {p2}에 {y}, {bg} 배경",
            "{bg} 배경, {x}{x.eun} {p1}, {y}{y.eun} {p2}",
        ),
        (True, False): ("{bg} 배경의 {x}{x.wa} {y}", "{x}{x.wa} {y}, {bg} 배경", "{bg} 배경, {x}{x.wa} {y}"),
        (False, True): ("{y} {rel}에 {x}", "{y}의 {rel}에 있는 {x}", "{p1}에 {x}, {p2}에 {y}"),
        (False, False): ("{x}{x.wa} {y}", "{x}{x.wa} {y} 그림"),
    },
    forms=_korean,
    join=" ",
    things={
        "🍎": "사과, 빨간 사과",
        "🚗": "자동차, 승용차, 차",
        "☕": "커피, 뜨거운 음료",
        "🐕": "개, 강아지, 멍멍이",
    },
)

LANGUAGES: dict[str, Language] = {language.tag: language for language in (ENGLISH, JAPANESE, CHINESE, KOREAN)}
