"""What the tests of the OpenAI Agents integration run: tools that work, break, hang and ask, and scripted agents."""

from __future__ import annotations

import asyncio

import pytest
from agents import (
    Agent,
    function_tool,
)
from agents.testing import ScriptedModel, assistant_message, function_call

from fsm.integrations.openai_agents import reported

TOOLS_TURN = "calling_model thinking running_tools processing_results"
LAST_TURN = "calling_model thinking processing_results completing completed"
APPROVED = {"verdict": "approved"}


async def ignore(event):
    """See a stream."""


streamed = pytest.mark.parametrize("on_event", [None, ignore], ids=["whole", "streamed"])


@function_tool
async def slow(x: int) -> str:
    """Take a while."""
    await asyncio.sleep(0.05)
    return f"slow {x}"


@function_tool
async def quick(x: int) -> str:
    """Take less."""
    await asyncio.sleep(0.01)
    return f"quick {x}"


async def by_zero(x: int) -> str:
    """Break."""
    await asyncio.sleep(0.01)
    raise ZeroDivisionError(f"{x} by zero")


def told(context, error):
    return f"It broke: {error}"


broken = function_tool(by_zero, name_override="broken")
custom = function_tool(by_zero, name_override="custom", failure_error_function=told)
reporting = function_tool(by_zero, name_override="reporting", failure_error_function=reported(told))
raising = function_tool(by_zero, name_override="raising", failure_error_function=None)


@function_tool(timeout=1)
async def endless(x: int) -> str:
    """Take too long."""
    await asyncio.sleep(100)
    return "never"


@function_tool(needs_approval=True)
async def refund(x: int) -> str:
    """Ask first."""
    return f"refunded {x}"


def call(*names):
    """A model's answer that calls tools."""
    return [function_call(name, {"x": 1}, call_id=f"c-{name}") for name in names]


def done(text="done"):
    return [assistant_message(text)]


def an_agent(*turns, name="helper", **options):
    options.setdefault("tools", [slow, quick, broken, custom, reporting, raising, endless, refund])
    return Agent(name, model=ScriptedModel(turns), **options)
