"""FSM015: a retry loop or fallback chain of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from fsm.audit.config import matches_name
from fsm.audit.facts import Method
from fsm.audit.model import Finding
from fsm.audit.roles import Tree
from fsm.audit.rule import Rule

CODE: Final = "FSM015"
_ENOUGH: Final = 3
"""Families of evidence: loops that catch errors are everywhere."""
_CALLED: Final = re.compile(
    r"(^|[._])(agent|llm|model|tool|completion|chat|generate|invoke|ainvoke|openai|anthropic|prompt|execute_(task|agent|step))"
)
_NAMED: Final = re.compile(r"(^|_)(retry|retries|retrying|fallbacks?|attempts?|backoff)(_|$)")


def _families(method: Method) -> dict[str, str]:
    if "try" not in method.loops:
        return {}
    families = {"loop": "catches errors in a loop"}
    called = [
        call[5:] for call in method.loops if call.startswith("call:") and _CALLED.search(call[5:].lower())
    ]
    if "sleep" in method.loops:
        families["sleep"] = "sleeps between two tries"
    if called:
        families["call"] = f"calls {called[0]}"
    if _NAMED.search(method.name) or any(_NAMED.search(p) for p in method.params):
        families["name"] = "speaks of tries"
    return families if called else {}


def find(tree: Tree) -> Iterator[Finding]:
    """Report loops that try a model, a tool or an agent again."""
    for module in tree.modules:
        if module.source.is_test:
            continue
        methods = [("", method) for method in module.facts.functions]
        methods += [(f"{c.qualname}.", method) for c in module.facts.classes for method in c.methods]
        for owner, method in methods:
            families = _families(method)
            if len(families) >= _ENOUGH and not matches_name(
                f"{module.name}.{owner}{method.name}", tree.config.engine_patterns
            ):
                text = f"{owner}{method.name} tries again by a loop of its own: it {', '.join(families.values())}"
                yield Finding(
                    module.source.shown,
                    method.line,
                    1,
                    CODE,
                    text,
                    f"{owner}{method.name}",
                    end_line=method.end,
                )


RULE: Final = Rule(
    code=CODE,
    title="a retry loop or fallback chain of its own",
    severity="note",
    why="A loop that tries again by itself knows no budget, no breaker and no journal, and multiplies an outage.",
    hint="Give retry= and fallback= to the engine, and call models with run.call_model(…).",
    bad="""
        import time

        def ask(llm, prompt, max_retries=3):
            for attempt in range(max_retries):
                try:
                    return llm.generate(prompt)
                except OSError:
                    time.sleep(2 ** attempt)
    """,
    good="""
        async def agent(run, prompt, client):
            async with run.model("openai:gpt-5"):
                return await client.complete(prompt)
    """,
    replaces="a retry loop, a fallback chain",
    find=find,
)
