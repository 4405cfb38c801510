"""The guarantees, each with a name and a sentence: README, the checkers and the planted bugs refer to them by name.

`tests/simulation/test_guarantees.py` holds the list, README's table, the checkers (`fsm.simulation.checker`,
`fsm.testing.machine`) and the planted bugs together.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

GUARANTEES: Mapping[str, str] = MappingProxyType(
    {
        # --- what users rely on; README says which tests show each -------------------------------------------------
        "no acknowledged transition is lost": (
            "A transition whose receipt was returned is in the journal, also when the process is killed."
        ),
        "journal and state agree": "An execution's record is what its journal leads to.",
        "versions have no gap": "Each transition of an execution makes the next version; the creation is version 0.",
        "a terminal state is final": (
            "Nothing leaves a terminal state, and an id that was deleted is not born again, also for a "
            "script with raw SQL."
        ),
        "the table is law": (
            "Every transition is a row of the table; what else SQL can do, without DDL, is refused by the "
            "file or found by `fsm doctor --verify`."
        ),
        "a zombie cannot write": (
            "A worker whose fence is stale, or that gives none, writes and claims nothing; only a cancel and "
            "a person's answer need no fence."
        ),
        "the file is the one that was opened": (
            "No receipt is acknowledged into a file that was deleted, replaced, moved or given a second name."
        ),
        "damage is contained": "A damaged file is a typed error, and a damaged record fails no page of others.",
        "an end is never refused for a value": "An end is never refused for a value in its payload.",
        "an interrupt leaves nothing half done": (
            "An exception at any line (Ctrl-C, no memory), a signal handler, a finaliser and a fork leave no "
            "lock held, no caller waiting and nothing half-written."
        ),
        "no loop ends at an error": (
            "No background loop ends at an error; a record that cannot be worked on is set aside with its "
            "reason, and starves or spins nothing."
        ),
        "a cancelled caller leaves nothing behind": (
            "A caller that is cancelled at any wait, once, twice or for ever, and a store that fails at any "
            "call, leave no slot, task or execution behind."
        ),
        "a breaker changes no answer": (
            "What a call raises is what its caller gets, whatever its exception does; no probe stays out."
        ),
        "an ambiguous commit is safe with a key": (
            "A call that is repeated with its key after an error takes effect once."
        ),
        "exactly one claimer": "Exactly one of several claimers, and of two contradictory ends, wins.",
        "a stale timer is harmless": "A deadline that moved while it was looked at ends nothing.",
        "a healthy execution is never declared dead": (
            "A worker that renews its lease keeps its executions, also behind a locked file."
        ),
        "a lost execution is found within lease and sweep": (
            "What a lost worker owned is given to others within its lease and one sweep."
        ),
        "a wall clock that jumps neither kills nor blocks": (
            "A wall clock that jumps neither kills, blocks nor prunes, also at boot."
        ),
        "every execution is listed once": (
            "Pages of executions show each one once, whatever is committed or deleted in between."
        ),
        "a cancel ends cancelled": (
            "A cancel ends cancelled, at the latest when its grace is over, or in an end that was under way."
        ),
        "children end with their parent": (
            "A parent that is cancelled or ends badly takes its children along, also if its process dies in "
            "between."
        ),
        "a forgotten child is cancelled": (
            "A child that its agent does not wait for is cancelled when the agent comes to its end."
        ),
        "an outcome survives an outage": (
            "The result or error of an agent is recorded although the store is away for minutes at that moment."
        ),
        "a fork leaves its parent alone": "A forked child leaves its parent's executions alone, however it ends.",
        "nothing stays open for ever": (
            "Whatever an agent does, its execution ends, and no slot, permit or task is left."
        ),
        "a deadline cancels the agent": (
            "A deadline really cancels the agent; one that goes on is reported, its late result kept apart."
        ),
        "users do not slow each other": "A user at the limit does not slow another user.",
        "a question outlives its process": "A question outlives the process that asked it.",
        "another user's execution is as unknown as none": (
            "Another user's execution does not exist, in every method of a user's tracker; what cannot be "
            "narrowed is not there."
        ),
        "stores behave alike": (
            "Every store passes the one conformance suite, and does the same with the same program."
        ),
        "every open execution has a deadline or a lease": (
            "Every open execution has a deadline, or an owner whose lease runs out."
        ),
        "every row can be taken": "Every transition of both shipped machines is taken by the tests.",
        # --- what follows from them for a single step ---------------------------------------------------------------
        "journal positions have no gap": (
            "Every position of the registry's journal is given out once, and none is left out."
        ),
        "a journal does not run backwards": "No receipt of an execution is older than the one before it.",
        "a journal never changes": "A row of the journal stays as it was written.",
        "both views of a journal agree": "An execution's history is its part of the registry's journal.",
        "a creation is one row of the journal": "A creation is the first row of a journal, and the only one.",
        "a journal keeps what came with an event": "A receipt has the payload that came with its event.",
        "a receipt is of what was asked": "A receipt names the execution, the event and the key of its call.",
        "a receipt says what the table says": "A receipt has the source and the target of a row of the table.",
        "the record is what the table makes of it": (
            "Owner, attempt, tools, waits and breaker of a record are what the rows assign."
        ),
        "what the table allows is done": "An event that the table allows is carried out.",
        "what the table does not allow is refused": "An event that the table does not allow is a refusal.",
        "what is the system's is not a user's": "An event that deadlines and leases fire is refused to users.",
        "what is listed as allowed can be done": "Every event that is listed as allowed can be fired.",
        "a refusal changes nothing": "A refusal leaves the record and the journal as they were.",
        "a refusal says why, and what is allowed": (
            "A refusal has the reason that the table gives, and the events that are allowed."
        ),
        "a payload that does not fit is refused": (
            "A payload that does not fit its event is refused, and changes nothing."
        ),
        "a decision changes nothing by itself": (
            "A decision returns data, and changes neither its machine nor its record."
        ),
        "nothing happens by itself": "An execution changes by an event only.",
        "nothing starts under a parent that has ended": (
            "No child is created under a parent that has ended or is stopping."
        ),
        "no execution is lost": "The store counts the executions that the journal knows.",
        "the counts are those of the records": "Counts by state are the numbers of the records in each state.",
        "the durations sum up to the age": "The time that an execution spent in its states adds up to its age.",
        "what is open is never pruned": "Only what has ended is pruned.",
        "what was pruned is gone": "Of a pruned execution neither the record nor the journal is left.",
        "a key is used once": "No two receipts of an execution have the same key.",
        "a deadline is where the limits lay it": (
            "The nearest deadline is the one that the limits of machine and execution lay."
        ),
        "a deadline that passed is met by the next sweep": (
            "What was due when a sweep began has moved on when it ends."
        ),
        "a deadline fires as what it is": "A timeout names the kind of the deadline that passed.",
        "a wait ends after it begins": "What an execution waits for lies after the beginning of the wait.",
        "a lost execution is tried as often as was said, then dead": (
            "An execution whose worker was lost is tried again up to its limit of attempts."
        ),
    }
)
"""The sentence of each guarantee, by its name."""
