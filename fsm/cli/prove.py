"""What ``fsm verify --prove`` finds, and how it is shown: lines, a drawing, a test."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

from rich.text import Text

from fsm.cli.common import err, out
from fsm.cli.load import vocabulary_of
from fsm.diagram.dot import to_dot
from fsm.diagram.path import path_of
from fsm.diagram.render import render_svg
from fsm.errors import ConfigurationError
from fsm.machine.grammar import CREATE
from fsm.machine.machine import Machine
from fsm.proof.liveness import find_stalls
from fsm.proof.prover import Prover, Verdict, prove_invariants
from fsm.proof.replayed import as_test


class Report:
    """The proof of one machine.

    Attributes:
        machine: The machine.
        verdicts: What came of each of its invariants.
        findings: What keeps an instance from its end.
    """

    def __init__(self, spec: str, machine: Machine) -> None:
        """Prove it.

        Args:
            spec: What the person called it by.
            machine: The machine.
        """
        self.machine = machine
        self._spec = spec
        begun = perf_counter()
        vocabulary = vocabulary_of(machine)
        self.verdicts = prove_invariants(machine, vocabulary)
        proved = [verdict.invariant for verdict in self.verdicts if verdict.proved]
        self.findings = find_stalls(Prover(machine, vocabulary), proved)
        self._took_s = perf_counter() - begun

    @property
    def ok(self) -> bool:
        """Whether all is proved."""
        return not self.findings and all(verdict.proved for verdict in self.verdicts)

    @property
    def refuted(self) -> Verdict | None:
        """The invariant with the shortest path that refutes it."""
        refuted = [verdict for verdict in self.verdicts if verdict.breaks]
        return min(
            refuted, key=lambda verdict: len(verdict.breaks.legs if verdict.breaks else ()), default=None
        )

    def as_list(self) -> list[dict[str, Any]]:
        """Return the verdicts as JSON-ready data."""
        return [
            {
                "name": verdict.invariant.name,
                "says": verdict.invariant.says,
                "holds": verdict.invariant.holds,
                "proved": verdict.proved,
                "k": verdict.k if verdict.proved else None,
                "near": verdict.near or None,
                "path": None
                if verdict.breaks is None
                else [
                    {"event": leg.event, "source": leg.source, "target": leg.target}
                    for leg in verdict.breaks.legs
                ],
            }
            for verdict in self.verdicts
        ]

    def show(self) -> None:
        """Print what was found."""
        for verdict in self.verdicts:
            if not verdict.proved:
                self._show(verdict)
        for finding in self.findings:
            err.print(Text.assemble("  ", (finding.code, "bold"), f"  {finding.row}"))
            err.print(Text(f"      {finding.message}. {finding.fix}."))
        proved = sum(verdict.proved for verdict in self.verdicts)
        end = "" if self.machine.perpetual or self.findings else "; every execution ends if deadlines fire"
        out.print(f"{proved} of {len(self.verdicts)} invariants proved in {self._took_s:.1f} s{end}")

    @staticmethod
    def _show(verdict: Verdict) -> None:
        invariant, path = verdict.invariant, verdict.breaks
        what = "refuted" if path else "neither proved nor refuted"
        err.print(Text.assemble("  ", (f"{what}: {invariant.name}", "bold red"), f"  {invariant.holds}"))
        err.print(Text(f"      {invariant.says}: it is not so."))
        if path is None:
            err.print(
                Text(f"      It may break at: {verdict.near}. State what rules that out as an invariant.")
            )
            return
        born = ", ".join(f"{name}={value}" for name, value in path.constants.items())
        err.print(Text(f"      with {born}:" if born else "      this way:"))
        before = dict(path.legs[0].words) if path.legs else {}
        for number, leg in enumerate(path.legs, 1):
            changed = {
                name: value for name, value in leg.words.items() if before.get(name) != value or number == 1
            }
            said = ", ".join(f"{name}={value}" for name, value in changed.items() if value or number > 1)
            err.print(Text(f"      {number}. {leg.source} --{leg.event}--> {leg.target}  ({said})"))
            before = dict(leg.words)

    def write(self, draw: Path | None, test: Path | None) -> None:
        """Write the drawing and the test of a refuted invariant, where they are asked for.

        Raises:
            ConfigurationError: Nothing is refuted.
        """
        if draw is None and test is None:
            return
        verdict = self.refuted
        if verdict is None or verdict.breaks is None:
            raise ConfigurationError(
                "no path refutes an invariant: there is nothing to draw or to write a test of"
            )
        if test is not None:
            test.write_text(as_test(self._spec, self.machine, verdict), encoding="utf-8")
        if draw is not None:
            steps: list[tuple[str | None, str, str, float]] = [(None, CREATE, self.machine.initial, 0.0)]
            steps += [
                (leg.source, leg.event, leg.target, float(at))
                for at, leg in enumerate(verdict.breaks.legs, 1)
            ]
            way = path_of(steps, float(len(steps)), self.machine.terminal)
            draw.write_bytes(render_svg(to_dot(self.machine, path=way)))
