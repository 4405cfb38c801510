"""Payloads: what was given comes back as it was given, and what does not fit is refused with what would fit."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, create_model

from fsm import EXECUTION, BadPayload, Fact, FsmError, Machine
from fsm.core.decide import DERIVED
from fsm.core.payloads import MAX_BYTES, PAYLOADS, Codec, Ending, Payload, register_payload
from fsm.core.results import jsonable
from fsm.machine.grammar import row, state

CODEC = Codec(EXECUTION, frozenset(DERIVED))


def machine(fact: str = "paid", payload: str | None = None, *, default: bool = False) -> Machine:
    """Return a small machine whose event `go` asks one fact."""
    return Machine(
        name="own",
        initial="a",
        states=(state("a", "running"), state("b", "terminal")),
        facts=(Fact(name=fact, default=default), Fact(name="owned")),
        transitions=(row("a", "go", "b", f"{fact} and not owned", otherwise="no"),),
        payloads=(("go", payload),) if payload else (),
    )


def codec(*args: Any, **others: Any) -> Codec:
    return Codec(machine(*args, **others), frozenset(DERIVED))


def result_of(given: Any) -> Any:
    """Return a result as it comes back from the journal."""
    _, text = CODEC.encode("complete", {"result": given})
    assert text is not None
    return json.loads(text)["result"]


# --- what was given stays as it was given --------------------------------------------------------------------


@pytest.mark.parametrize("falsy", [0, False, "", [], {}, 0.0, None])
def test_falsy_results_stay_themselves(falsy: Any) -> None:
    """0, False, "", [] and {} are results: they are kept with their type, not taken for nothing."""
    payload, text = CODEC.encode("complete", {"result": falsy})
    again = result_of(falsy)
    assert again == falsy
    assert type(again) is type(falsy)
    assert payload["result"] == falsy
    assert text is not None


def test_none_that_was_given_is_told_from_nothing() -> None:
    """A result of None is written down; a result that was not given is not."""
    assert CODEC.encode("complete", {"result": None})[1] == '{"result":null}'
    assert CODEC.encode("complete", {"outcome": "won"})[1] == '{"outcome":"won"}'
    assert CODEC.encode("complete", {})[1] is None


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def alike(one: Any, other: Any) -> bool:
    """Compare JSON values together with their types, so that 1, 1.0 and True differ."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


@settings(max_examples=200)
@given(json_values)
def test_any_json_value_comes_back_as_it_was(value: Any) -> None:
    """Every JSON value is read back with the same value and type, as a result and as data."""
    assert alike(result_of(value), value)
    _, text = CODEC.encode("think", {"data": value})
    assert text is not None
    assert alike(json.loads(text), {"data": value})


@pytest.mark.parametrize(
    "text", ["NaN", "Infinity", "-Infinity and NaN", "\0", "\u2028", "😀", '"', "\\", "\x7f"]
)
def test_awkward_texts_come_back_as_they_were(text: str) -> None:
    """Text that looks like a forbidden number or needs escapes is text like any other, also as a key."""
    assert result_of(text) == text
    assert result_of({text: [text]}) == {text: [text]}


@pytest.mark.parametrize("number", [10**400, -(10**4000), sys.float_info.max, 5e-324, 0.1, -0.0])
def test_awkward_numbers_come_back_as_they_were(number: float) -> None:
    """Large and small numbers are neither rounded nor refused when they can be read back."""
    assert repr(result_of(number)) == repr(number)


def test_many_digits_in_a_text_are_a_text() -> None:
    """Digits that no number may have are taken as text."""
    assert result_of(["9" * 5_000, 10**4299]) == ["9" * 5_000, 10**4299]


def test_changing_the_callers_object_later_changes_nothing() -> None:
    """What is written down is a copy: the caller's lists and dicts can change afterwards."""
    given = {"found": [1, {"deep": True}]}
    payload = {"result": given, "outcome": "won"}
    _, text = CODEC.encode("complete", payload)
    given["found"].append(2)
    given["more"] = []
    payload["outcome"] = "lost"
    assert text is not None
    assert json.loads(text) == {"result": {"found": [1, {"deep": True}]}, "outcome": "won"}


def test_defaults_are_filled_in_but_not_written_down() -> None:
    """A decision sees every field, the journal only those that were given."""
    payload, text = CODEC.encode("fail", {"error": "no"})
    assert payload["retryable"] is False
    assert payload["retry_in_s"] is None
    assert text == '{"error":"no"}'
    assert CODEC.encode("call_model", {})[0]["permit"] is True


def test_checking_a_payload_changes_nothing_of_it() -> None:
    """The caller's payload is the same after it was checked."""
    payload = {"name": "search", "arguments": {"q": ["x"]}}
    before = json.dumps(payload)
    CODEC.encode("open_tool", payload)
    assert json.dumps(payload) == before


def test_an_event_that_the_machine_does_not_know_is_left_to_the_table() -> None:
    """The payload of an unknown event is not judged: the refusal names the event, not its payload."""
    assert CODEC.encode("fly", {"high": object()}) == ({}, None)
    assert CODEC.encode("fly", {}) == ({}, None)


# --- what does not fit ---------------------------------------------------------------------------------------


def nested(depth: int, *, as_dict: bool = False) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"in": value} if as_dict else [value]
    return value


def cyclic() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def _ends(event: str) -> bool:
    return issubclass(PAYLOADS.get(event, Payload), Ending)


def _misnamed(bad: dict[Any, Any], why: str) -> bool:
    return not set(bad) <= {"retryable", "retry_in_s", "error", "kind", "result"} or "Extra" in why


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("think", {"thought": 1}, "thought: Extra inputs are not permitted"),
    ("complete", {"results": 1}, "results: Extra inputs are not permitted"),
    ("fail", {"retryable": "1"}, "retryable: Input should be a valid boolean"),
    ("fail", {"retryable": 1}, "retryable: Input should be a valid boolean"),
    ("fail", {"retryable": None}, "retryable: Input should be a valid boolean"),
    ("call_model", {"permit": "true"}, "permit: Input should be a valid boolean"),
    ("fail", {"retry_in_s": "1"}, "retry_in_s: Input should be a valid number"),
    ("fail", {"retry_in_s": True}, "retry_in_s: Input should be a valid number"),
    ("fail", {"retry_in_s": -1.0}, "retry_in_s: Input should be greater than or equal to 0"),
    ("fail", {"retry_in_s": math.nan}, "retry_in_s: Input should be"),
    ("fail", {"retry_in_s": math.inf}, "retry_in_s: Input should be a finite number"),
    ("fail", {"retry_in_s": 10**400}, "retry_in_s: Input should be a valid number"),
    ("await_input", {"expires_s": 0}, "expires_s: Input should be greater than 0"),
    ("await_input", {"expires_s": math.nan}, "expires_s: Input should be"),
    ("await_input", {"expires_s": math.inf}, "expires_s: Input should be a finite number"),
    ("fail", {"error": 5}, "error: Input should be a valid string"),
    ("fail", {"error": b"no"}, "error: Input should be a valid string"),
    ("fail", {"error": None}, "error: Input should be a valid string"),
    ("fail", {"error": "x" * 10_001}, "error: String should have at most 10000 characters"),
    ("receive_input", {"verdict": "maybe"}, "verdict: Input should be 'approved', 'refused' or 'text'"),
    ("time_out", {"kind": "soon"}, "kind: Input should be 'queue'"),
    ("complete", {"result": object()}, "result: input was not a valid JSON value"),
    ("complete", {"result": b"bytes"}, "result: input was not a valid JSON value"),
    ("complete", {"result": (1, 2)}, "result: input was not a valid JSON value"),
    ("complete", {"result": {1, 2}}, "result: input was not a valid JSON value"),
    ("complete", {"result": {1: 2}}, "Input should be a valid string"),
    ("complete", {"result": 1j}, "result: input was not a valid JSON value"),
    ("complete", {"result": math.nan}, "holds NaN, which JSON cannot say"),
    ("complete", {"result": [1, {"x": -math.inf}]}, "holds -Infinity, which JSON cannot say"),
    ("complete", {"result": ["NaN", math.nan]}, "holds NaN, which JSON cannot say"),
    ("complete", {"result": "\ud800"}, "cannot be written as JSON"),
    ("complete", {"result": {"\ud800": 1}}, "cannot be written as JSON"),
    ("fail", {"error": "\ud800"}, "error: Input should be a valid string"),
    ("complete", {"\ud800": 1}, "Input should be a valid string"),
    ("complete", {1: 1}, "Keys should be strings"),  # type: ignore[dict-item]
    ("complete", {"result": "x" * MAX_BYTES}, "bytes, 1048576 at most: store a reference instead"),
    ("complete", {"result": "ä" * (MAX_BYTES // 2)}, "bytes, 1048576 at most"),
    ("complete", {"result": nested(300)}, "nested too deeply"),
    ("complete", {"result": nested(300, as_dict=True)}, "nested too deeply"),
    ("complete", {"result": nested(100_000)}, "nested too deeply"),
    ("complete", {"result": cyclic()}, "nested too deeply"),
    ("complete", {"result": 10**5000}, "digits"),
    ("think", {"data": [-(10**5000)]}, "digits"),
    ("complete", {"x" * 5_000: 1}, "Extra inputs are not permitted"),
    ("think", {f"field_{n}": 1 for n in range(1_000)}, "Extra inputs are not permitted"),
]


ENDS = [(event, bad) for event, bad, why in BAD if _ends(event) and not _misnamed(bad, why)]
BAD = [one for one in BAD if not (_ends(one[0]) and not _misnamed(one[1], one[2]))]


@pytest.mark.parametrize(("event", "bad"), ENDS)
def test_an_end_is_never_refused_for_a_value(event: str, bad: dict[str, Any]) -> None:
    """What does not fit an end is coerced, clipped or left out, and what cannot be told apart is said in the note."""
    fields, text = CODEC.encode(event, bad)
    assert text is not None
    written = json.loads(text)
    assert len(text.encode()) <= MAX_BYTES
    assert set(written) <= {*bad, "note"}
    ((name, value),) = bad.items()
    assert written.get(name) == jsonable(value) or "note" in written
    assert fields.get("note") == written.get("note")


def test_an_error_may_be_the_exception_itself() -> None:
    """An exception becomes its message, type and traceback; what its caller says besides stays."""
    text = CODEC.encode("fail", {"error": ValueError("no such order"), "retryable": True})[1]
    written = json.loads(text or "")
    assert (written["error"], written["error_type"], written["retryable"]) == (
        "no such order",
        "ValueError",
        True,
    )
    assert "ValueError: no such order" in written["traceback"]
    said = json.loads(CODEC.encode("fail", {"error": KeyError(1), "error_type": "mine"})[1] or "")
    assert said["error_type"] == "mine"


def test_a_long_end_is_clipped_with_a_mark() -> None:
    """A long text keeps its beginning, a traceback its end, a large result its beginning in a form that says so."""
    written = json.loads(
        CODEC.encode("fail", {"error": "x" * 10_001, "traceback": "y" * 100_001 + "!"})[1] or ""
    )
    assert len(written["error"]) == 10_000
    assert written["error"].endswith("…")
    assert written["traceback"].startswith("…")
    assert written["traceback"].endswith("!")
    large = json.loads(CODEC.encode("complete", {"result": "z" * MAX_BYTES})[1] or "")["result"]
    assert large["truncated"] is True
    assert large["characters"] == MAX_BYTES + 2


@pytest.mark.parametrize(("event", "bad", "why"), BAD)
def test_what_does_not_fit_is_refused_with_what_is_wrong(event: str, bad: dict[str, Any], why: str) -> None:
    """A payload that does not fit is one typed error that names the event and the field, and is short."""
    with pytest.raises(BadPayload) as caught:
        CODEC.encode(event, bad)
    text = str(caught.value)
    assert why in text
    assert repr(event) in text
    assert len(text) < 1_000, "a person reads this"
    assert isinstance(caught.value, FsmError)
    assert isinstance(caught.value, ValueError)


def test_a_refusal_lists_the_fields_that_the_event_takes() -> None:
    """Whoever misspells a field is told the right ones."""
    with pytest.raises(BadPayload, match="It takes: note, data, result, outcome"):
        CODEC.encode("complete", {"resutl": 1})


def test_what_is_accepted_can_be_read_back_at_any_depth() -> None:
    """A nesting is either kept as text or can be read by every reader: there is no depth between the two."""
    for depth in range(1, 300, 7):
        for as_dict in (False, True):
            kept = result_of(nested(depth, as_dict=as_dict))
            assert kept == nested(depth, as_dict=as_dict) or (depth > 100 and isinstance(kept, str))


def test_a_payload_up_to_the_limit_is_taken() -> None:
    """The limit counts the whole text in bytes, and its last byte is allowed."""
    frame = len('{"result":""}')
    assert len(CODEC.encode("complete", {"result": "x" * (MAX_BYTES - frame)})[1] or "") == MAX_BYTES
    assert '"truncated":true' in (
        CODEC.encode("complete", {"result": "x" * (MAX_BYTES - frame + 1)})[1] or ""
    )
    with pytest.raises(BadPayload):
        CODEC.encode("think", {"data": "x" * MAX_BYTES})


# --- own machines --------------------------------------------------------------------------------------------


def test_own_facts_come_as_booleans_of_the_payload() -> None:
    """A machine's own fact is a strict boolean field of the events that ask it, with the declared default."""
    payload, text = codec().encode("go", {"paid": True, "note": "cash"})
    assert payload["paid"] is True
    assert text == '{"note":"cash","paid":true}'
    assert codec().encode("go", {})[0]["paid"] is False
    assert codec(default=True).encode("go", {})[0]["paid"] is True
    for bad in ("1", 1, None, "true"):
        with pytest.raises(BadPayload, match="paid: Input should be a valid boolean"):
            codec().encode("go", {"paid": bad})


def test_facts_of_the_record_cannot_be_claimed_by_a_payload() -> None:
    """A payload cannot say who owns the execution: the record knows."""
    with pytest.raises(BadPayload, match="owned: Extra inputs"):
        codec().encode("go", {"owned": False})
    with pytest.raises(BadPayload, match="attempts_left: Extra inputs"):
        CODEC.encode("fail", {"attempts_left": True})


def test_a_fact_is_asked_only_where_a_guard_asks_it() -> None:
    """An event takes the facts of its own guards and no others."""
    with pytest.raises(BadPayload, match="permit: Extra inputs"):
        CODEC.encode("think", {"permit": True})


@pytest.fixture
def registered() -> Iterator[None]:
    """Forget the payload models that a test registers."""
    before = dict(PAYLOADS)
    yield
    PAYLOADS.clear()
    PAYLOADS.update(before)


class Order(Payload):
    amount: int = Field(gt=0)
    currency: Literal["EUR", "USD"] = "EUR"
    paid: bool = False
    urgent: bool | None = None
    comment: str | None = None


@pytest.mark.usefixtures("registered")
def test_an_own_payload_model_is_checked_strictly() -> None:
    """A registered model is used for the event that names it: required fields, types and defaults count."""
    register_payload("order", Order)
    register_payload("order", Order)  # the same again is no conflict
    own = codec(payload="order")
    payload, text = own.encode("go", {"amount": 3, "paid": True})
    assert (payload["amount"], payload["currency"], payload["paid"]) == (3, "EUR", True)
    assert text == '{"amount":3,"paid":true}'
    for bad, why in (
        ({}, "amount: Field required"),
        ({"amount": "3"}, "amount: Input should be a valid integer"),
        ({"amount": 0}, "amount: Input should be greater than 0"),
        ({"amount": 1, "currency": "eur"}, "currency: Input should be 'EUR' or 'USD'"),
    ):
        with pytest.raises(BadPayload) as caught:
            own.encode("go", bad)
        assert why in str(caught.value)
        assert "It takes: note, data, amount" in str(caught.value)


@pytest.mark.usefixtures("registered")
def test_a_fact_may_be_a_field_of_the_model_if_it_is_a_boolean() -> None:
    """A fact that is a boolean field of the event's model is answered by it; None leaves it to the default."""
    register_payload("order", Order)
    assert codec("urgent", "order").encode("go", {"amount": 1, "urgent": None})[0]["urgent"] is None


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("fact", ["comment", "amount", "note", "data"])
def test_a_fact_that_a_field_of_another_type_hides_is_refused(fact: str) -> None:
    """A fact that is called like a field which is no boolean could never be answered; the machine is refused."""
    register_payload("order", Order)
    with pytest.raises(BadPayload, match=f"{fact!r}.*is no boolean.*rename"):
        codec(fact, "order")


@pytest.mark.usefixtures("registered")
def test_a_payload_name_is_given_once() -> None:
    """A name that is taken, or a class that is no payload, is refused when it is registered."""

    class Other(Payload):
        pass

    register_payload("order", Order)
    with pytest.raises(BadPayload, match="'order' is taken by Order"):
        register_payload("order", Other)
    with pytest.raises(BadPayload, match="'start' is taken by Claim"):
        register_payload("start", Other)
    for bad in (dict, Order(amount=1), None, "Order"):
        with pytest.raises(BadPayload, match=r"subclass of fsm\.Payload"):
            register_payload("bad", bad)  # type: ignore[arg-type]
    assert PAYLOADS["start"] is not Other


def test_a_machine_with_an_unregistered_payload_is_refused_by_name() -> None:
    """A machine that names a payload which nobody registered is refused, with what to call."""
    with pytest.raises(BadPayload, match=r"call register_payload\('parcel', YourModel\) first"):
        codec(payload="parcel")


def test_every_shipped_model_takes_a_note_and_data() -> None:
    """Each event of the execution machine can carry a note for people and data of any shape."""
    for event in EXECUTION.events:
        _, text = CODEC.encode(event, {"note": "why", "data": {"n": [1]}})
        assert json.loads(text or "") == {"note": "why", "data": {"n": [1]}}


@pytest.mark.parametrize("name", sorted(PAYLOADS))
def test_payload_models_are_frozen(name: str) -> None:
    """A payload cannot be changed once it was made."""
    model = PAYLOADS[name]()
    with pytest.raises(ValueError, match="frozen"):
        model.note = "changed"  # type: ignore[misc]


@pytest.mark.parametrize("field", ["key", "fence"])
def test_a_field_that_fire_takes_itself_is_refused(field: str) -> None:
    """A payload model cannot have a field that `fire` takes as an argument of its own: nobody could send it."""
    model = create_model("Taken", __base__=Payload, **{field: (str | None, None)})
    with pytest.raises(BadPayload, match=field):
        register_payload("taken", model)
    assert "taken" not in PAYLOADS
