"""A small real pydantic-ai agent that needs no network, for demonstrations and tests."""

from __future__ import annotations

import asyncio

try:
    from pydantic_ai import Agent
    from pydantic_ai.exceptions import ModelRetry
    from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
    from pydantic_ai.models.function import AgentInfo, FunctionModel
except ImportError as error:
    raise ImportError(
        "fsm.integrations.demo_agent needs pydantic-ai 2.68 or newer: pip install 'agent-fsm[pydantic-ai]'"
    ) from error


def researcher(pause_s: float = 0.0) -> Agent[None, str]:
    """Make an agent that looks a city up with two tools at once, one of which has to be asked twice.

    Its model is a function: it asks for both tools, then again for the one that wanted a retry, then it answers.

    Args:
        pause_s: How many seconds each tool and each model request takes, so that the states can be watched.

    Returns:
        A new agent; the census of every new one fails once.
    """

    async def model(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        await asyncio.sleep(pause_s)
        returned = [
            part for message in messages for part in message.parts if isinstance(part, ToolReturnPart)
        ]
        found = {part.tool_name: part.content for part in returned if part.outcome == "success"}
        if not returned:
            return ModelResponse(
                [ToolCallPart("gazetteer", {"city": "Oslo"}), ToolCallPart("census", {"city": "Oslo"})]
            )
        if "census" not in found:
            return ModelResponse([ToolCallPart("census", {"city": "Oslo", "country": "Norway"})])
        return ModelResponse([TextPart(f"{found['gazetteer']} and has {found['census']} people.")])

    agent = Agent(FunctionModel(model, model_name="demo"), name="researcher")

    @agent.tool_plain
    async def gazetteer(city: str) -> str:
        """Say where a city lies."""
        await asyncio.sleep(pause_s)
        return f"{city} lies in Norway"

    asked: set[str] = set()

    @agent.tool_plain
    async def census(city: str, country: str | None = None) -> int:
        """Count a city's people."""
        await asyncio.sleep(pause_s)
        if city not in asked:
            asked.add(city)
            raise ModelRetry(f"several cities are called {city}: name the country")
        return 717_710 if country == "Norway" else 0

    return agent
