"""What a person answered, and how a question is known again."""

from __future__ import annotations

import json
from typing import Any, Literal, NamedTuple


class Answer(NamedTuple):
    """What a person answered.

    Attributes:
        verdict: approved, refused, or text.
        text: What was said.
        by: Who said it.
    """

    verdict: Literal["approved", "refused", "text"]
    text: str | None
    by: str | None

    @property
    def approved(self) -> bool:
        """Whether the answer is a yes."""
        return self.verdict == "approved"


def answer_of(payload_json: str | None) -> Answer:
    """Return the answer that the payload of ``receive_input`` holds."""
    payload = json.loads(payload_json) if payload_json else {}
    return Answer(payload.get("verdict") or "text", payload.get("text"), payload.get("by"))


def asked(question: str, data: Any) -> str:
    """Return by what a question is known again when it is asked another time.

    Args:
        question: Its text.
        data: What came with it, as JSON-ready data.
    """
    return question if data is None else f"{question}\n{json.dumps(data, sort_keys=True)}"
