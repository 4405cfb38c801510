"""The two shipped machines, driven by the test that the kit makes of any machine."""

from __future__ import annotations

from fsm import BREAKER, EXECUTION
from fsm.testing import machine_test

TestExecution = machine_test(EXECUTION, require_all=True)
TestBreaker = machine_test(BREAKER, require_all=True)
