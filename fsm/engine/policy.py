"""How an engine treats an execution: its checks, its fallback, its patience."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fsm.core.results import type_of, why
from fsm.engine.functions import Agent
from fsm.errors import BadPayload, LimitReached, PrerequisiteFailed

Hook = Callable[..., Any]


@dataclass(frozen=True)
class RunPolicy:
    """How an engine treats an execution.

    Attributes:
        before: Called with the run before the agent; a text or False that is returned refuses.
        after: Called with the run and the result; a text or False that is returned refuses.
        fallback: What takes the agent's place when it has failed for good; ``None`` for nothing.
        retry_on: The errors after which another attempt may help.
        patience_s: How long, in seconds, an agent may go on to clean up after its execution has ended.
        record: Whether results are kept in the journal.
    """

    before: tuple[Hook, ...] = ()
    after: tuple[Hook, ...] = ()
    fallback: Agent | Value | None = None
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    patience_s: float = 1.0
    record: bool = True


@dataclass(frozen=True)
class Value:
    """A result that is kept ready as a fallback."""

    value: Any


async def ask(hook: Hook, *args: Any) -> None:
    """Ask a hook; a text or False refuses, and so does an exception.

    Raises:
        PrerequisiteFailed: It refuses.
        BadPayload: It returned what is neither a yes nor a no, and would be lost.
    """
    try:
        said = hook(*args)
        if inspect.isawaitable(said):
            said = await said
    except (PrerequisiteFailed, LimitReached):
        raise
    except Exception as error:
        raise PrerequisiteFailed(why(error)) from error
    if isinstance(said, str):
        raise PrerequisiteFailed(said)
    if said is False:
        raise PrerequisiteFailed(f"{getattr(hook, '__name__', 'a check')} said no")
    if said is not None and said is not True:
        raise BadPayload(
            f"{getattr(hook, '__name__', 'a check')} returned {_kind(said)}, which says nothing: a check returns None "
            "or True to let pass, a text or False to refuse; a result cannot be replaced by a check"
        )


def _kind(value: Any) -> str:
    kind = type_of(value)
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"
