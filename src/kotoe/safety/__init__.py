"""Safety checks round `generate`, which stays pure: of prompts by lists of terms, of pictures by CompVis' checker.

    from kotoe.safety.prompts import check_prompt            # no torch
    from kotoe.safety.load import load_checker
    from kotoe.safety.images import carry_out, judge

A check returns a Verdict; what is done about it is the caller's, or `carry_out`'s. See docs/safety.md.
"""
