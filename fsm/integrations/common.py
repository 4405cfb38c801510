"""What the integrations share: questions fit for people, one limit, and two errors."""

from __future__ import annotations

from fsm.errors import FsmError

MAX_QUESTION = 10_000
"""A question is cut at so many characters: the journal takes no longer text."""

MAX_QUESTIONS = 100
"""So often one call of an agent may stop to ask people, unless it is told otherwise."""


class TooManyQuestions(FsmError):
    """An agent stopped for a person's answer more often than `limit` times."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(
            f"the agent stopped for a person's answer more than {limit} times: it probably asks in a loop. "
            "Raise max_questions if so many questions are meant"
        )


class ToolAnsweredError(Exception):
    """A tool did not raise, but its answer says that it failed; the journal shows this in the error's place."""


def cut(text: str, limit: int = MAX_QUESTION) -> str:
    """Cut a text for people.

    Args:
        text: The text.
        limit: The most characters that may be left.

    Returns:
        The text, or its beginning with an ellipsis.
    """
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
