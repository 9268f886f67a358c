"""Asking whether a model's licence is accepted: once for each model and licence, on a terminal or by an option."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from kotoe import hub, licences
from kotoe.console import Values, part_of, say
from kotoe.errors import UserError
from kotoe.licences import Licensed, Terms
from kotoe.runs import processes_started

YES = "yes"


@dataclass(frozen=True, kw_only=True)
class Agreeing:
    """What is agreed to.

    accept_license: accept the licences of every model that this command names (it takes no name itself), where they
                    bind what may be done with them; without it a terminal asks. Either is recorded, and a model's
                    licence asked for once.
    """

    accept_license: bool = False


def agree(values: Values, *models: str | None, dry_run: bool = False) -> None:
    """Settle the licences of models that a verb is about to use, and of conditioners in them; None is no model.

    Raises UserError where one is not accepted. Of a model on the hub nothing but what says its licence is downloaded
    before that. dry_run: only say what would be asked.
    """
    wanted: Agreeing = part_of(values, Agreeing)
    for model in dict.fromkeys(model for model in models if model is not None):
        licensed = licences.of(model)
        for each in () if licensed is None else (licensed, *licensed.parts.values()):
            _settle(each, wanted.accept_license, dry_run)


def _settle(licensed: Licensed, accept: bool, dry_run: bool) -> None:
    card = licensed.card
    if card is None:
        if licensed.from_hub:
            say(f"note: {licensed.model} has no model card here, so its licence isn't known")
        return
    if card.reason:
        say(f"note: {licensed.model}: {card.reason}; read there what its licence is")
    if card.terms is None or licences.accepted(licensed) is not None:
        return
    for line in lines(licensed.model, card.terms):
        say(line)
    if dry_run:
        say("note: it is not accepted yet; without --dry-run it would " + ("be now" if accept else "be asked for"))
        return
    if not accept:
        if processes_started() > 1 or not all(each and each.isatty() for each in (sys.stdin, sys.stderr)):
            raise UserError(
                f"the licence of {licensed.model} is not accepted yet, and there is no terminal to ask on",
                allowed="models whose licence is accepted",
                hint="Where you accept it, say so once: --accept-license",
            )
        sys.stderr.write(f"Do you accept it? ({YES}/no) ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in (YES, "y"):
            raise UserError(f"the licence of {licensed.model} is not accepted, and nothing was done with the model")
    try:
        path = licences.accept(licensed)
    except OSError as error:
        say(f"note: that it is accepted can't be recorded ({error.strerror}), so it will be asked for again")
    else:
        say(f"accepted; recorded in {path}")


def lines(model: str, terms: Terms) -> list[str]:
    """What a licence binds to, to be read before it is accepted."""
    where = terms.text or f"{hub.CARD} of the model"
    return [
        f"{model} has a licence that binds what you may do with it: {terms.title}.",
        *terms.summary,
        f"This is Kotoe's summary. The licence's text is what binds: {where}",
    ]
