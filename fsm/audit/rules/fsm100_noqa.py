"""FSM100: a noqa that silences nothing; the comments are read at the end of an audit."""

from __future__ import annotations

from typing import Final

from fsm.audit.rule import Rule

RULE: Final = Rule(
    code="FSM100",
    title="a noqa that silences nothing",
    severity="warning",
    why="A suppression that outlived its reason hides the next real finding on that line.",
    hint="Remove the code from the noqa comment.",
    bad="""
        LIMIT = 10  # noqa: FSM002
    """,
    good="""
        LIMIT = 10
    """,
)
