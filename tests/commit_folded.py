"""The model of tests/commit_model.py with numbers for states, and the walk through them: there are a million.

The pieces of a world hang together by little. What a worker does by itself depends on its side and on which groups
there are. What the coordinator does depends on all that it knows and on the answer it reads; it changes what it knows,
and it changes some sides, each without a look at another. So the few coordinators and sides that differ are numbered,
each small step is worked out by the model once, and a state is the numbers of its pieces, put together to one, to which
a step adds something. The walk is the same, state by state: a test compares.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.commit_model import Model
from tests.commit_pieces import Side
from tests.commit_world import Label, Setting, World
from tests.explorer import Explorer

SIDE_BITS = 12
BUDGET_BITS = 3
_SIDE, _BUDGET = (1 << SIDE_BITS) - 1, (1 << BUDGET_BITS) - 1
_NOTHING = -1


class Numbers:
    """A number for each thing that differs, counted from 0, and the things."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}
        self.things: list[Any] = []

    def __call__(self, thing: Any) -> int:
        number = self._numbers.setdefault(thing, len(self.things))
        if number == len(self.things):
            self.things.append(thing)
        return number


class Known(NamedTuple):
    """Of a coordinator: where the groups stand, what it can do by itself, the shards that owe it an answer."""

    place: int
    moves: list[str]
    owing: list[int]


class Seen(NamedTuple):
    """Of a side: the next message to the coordinator, or _NOTHING; what survives a kill; whether nothing is to do."""

    message: int
    durable: int
    idle: bool


class Told(NamedTuple):
    """A step of the coordinator: what it adds to a state by itself, and for each shard it looks at, by its side."""

    label: Label
    change: int
    by_side: list[tuple[int, dict[int, int]]]


class Folded:
    """The model, folded. From the lowest bits up, a state holds the numbers of its sides, how many deaths, kills and
    failures are left, and the number of its coordinator: all of a World but sides and budget.

    Its attributes are the model, the numbers, what was worked out of each, and where in a state they stand.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._coordinators, self._sides = Numbers(), Numbers()
        self._places, self._messages, self._durables = Numbers(), Numbers(), Numbers()
        self._known: list[Known] = []
        self._seen: list[Seen] = []
        self._heard: dict[tuple[int, int], int] = {}
        self._told: dict[tuple[int, str | int, int], Told] = {}
        self._alone: dict[tuple[int, ...], list[tuple[Label, int]]] = {}
        self._starts: dict[tuple[int, ...], tuple[Label, int]] = {}
        self._shifts = [SIDE_BITS * shard for shard in range(model.setting.shards)]
        self._deaths, self._kills, self._failures, self._top = (
            SIDE_BITS * model.setting.shards + BUDGET_BITS * number for number in range(4)
        )

    @property
    def trying(self) -> Label | None:
        return self._model.trying

    def start(self) -> int:
        return self._fold(self._model.start())

    def check(self, state: int) -> None:
        for shard in self._known[state >> self._top].owing:
            if self._seen[state >> self._shifts[shard] & _SIDE].idle:
                self._model.check(self._unfold(state))

    def check_end(self, state: int) -> None:
        self._model.check_end(self._unfold(state))

    def steps(self, state: int) -> list[tuple[Label, int]]:
        """Every step that is possible in a state, in the model's order."""
        sides = [state >> shift & _SIDE for shift in self._shifts]
        place, moves, _ = self._known[state >> self._top]
        mortal, failing = bool(state >> self._deaths & _BUDGET), bool(state >> self._failures & _BUDGET)
        found = [self._tell(state, sides, move) for move in moves]
        for shard, side in enumerate(sides):
            message = self._seen[side].message
            if message != _NOTHING:
                found.append(self._listen(state, sides, shard, message))
            key = place, shard, side, mortal, failing
            alone = self._alone.get(key)
            if alone is None:
                alone = self._alone[key] = self._live(state, shard)
            found += [(label, state + change) for label, change in alone]
        if state >> self._kills & _BUDGET:
            found.append(self._kill(state, sides))
        return found

    def _listen(self, state: int, sides: list[int], shard: int, message: int) -> tuple[Label, int]:
        """The coordinator reads the first message of a shard."""
        side = sides[shard]
        heard = self._heard.get((shard, side))
        if heard is None:
            heard = self._heard[shard, side] = self._side(self._model.heard(shard, self._sides.things[side]))
        sides = sides.copy()
        sides[shard] = heard
        return self._tell(state + (heard - side << self._shifts[shard]), sides, shard, message)

    def _tell(self, state: int, sides: list[int], what: str | int, message: int = _NOTHING) -> tuple[Label, int]:
        """What the coordinator does by itself, or makes of a message of the shard `what`."""
        told = self._told.get((state >> self._top, what, message))
        if told is not None:
            label, change, by_side = told
            for shard, changes in by_side:
                part = changes.get(sides[shard])
                if part is None:
                    break
                change += part
            else:
                return label, state + change
        return self._work_out(state, sides, what, message)

    def _work_out(self, state: int, sides: list[int], what: str | int, message: int) -> tuple[Label, int]:
        """Have the model tell, and remember it, piece by piece."""
        world = self._unfold(state)
        if isinstance(what, str):
            label, after = self._model.move(world, what)
        else:
            label, after = self._model.react(world, what, self._messages.things[message])
        number, looked = state >> self._top, self._model.looked
        change = self._coordinator(after) - number << self._top
        told = self._told.setdefault(
            (number, what, message), Told(label, change, [(shard, {}) for shard in sorted(looked)])
        )
        assert told.change == change, "what comes of the coordinator depends on a side"
        assert {shard for shard, _ in told.by_side} == looked, "whether a side matters depends on a side"
        for shard, changes in told.by_side:
            part = self._side(after.sides[shard]) - sides[shard] << self._shifts[shard]
            assert changes.setdefault(sides[shard], part) == part, "what comes of a side depends on another"
            change += part
        return label, state + change

    def _live(self, state: int, shard: int) -> list[tuple[Label, int]]:
        """What becomes of a worker without the coordinator."""
        world = self._unfold(state)
        steps = self._model.alone(world, shard, world.sides[shard])
        return [(label, self._fold(after) - state) for label, after in steps]

    def _kill(self, state: int, sides: list[int]) -> tuple[Label, int]:
        """Everything is killed. Nothing but the budget is left of the state as it is."""
        key = state >> self._top, *(self._seen[side].durable for side in sides)
        budget = (state & (1 << self._top) - (1 << self._deaths)) - (1 << self._kills)
        found = self._starts.get(key)
        if found is None:
            label, after = self._model.restart(self._unfold(state))
            found = self._starts[key] = label, self._fold(after) - budget
        label, start = found
        return label, start + budget

    # Worlds and numbers

    def _fold(self, world: World) -> int:
        state = self._coordinator(world) << self._top
        for left, at in zip(world[5:8], (self._deaths, self._kills, self._failures), strict=True):
            assert left <= _BUDGET
            state += left << at
        return state + sum(self._side(side) << shift for side, shift in zip(world.sides, self._shifts, strict=True))

    def _unfold(self, state: int) -> World:
        coordinator = self._coordinators.things[state >> self._top]
        budget = [state >> at & _BUDGET for at in (self._deaths, self._kills, self._failures)]
        sides = tuple([self._sides.things[state >> shift & _SIDE] for shift in self._shifts])
        return World._make((*coordinator[:5], *budget, sides, *coordinator[5:]))

    def _coordinator(self, world: World) -> int:
        number = self._coordinators((*world[:5], *world[9:]))
        if number == len(self._known):
            owing = self._model.table.owing[world.commit] if self._model.setting.deadlines else ()
            place = self._places((world.issued, world.record))
            self._known.append(Known(place, self._model.moves(world), sorted(owing)))
        return number

    def _side(self, side: Side) -> int:
        number = self._sides(side)
        assert number <= _SIDE
        if number == len(self._seen):
            message = self._messages(side.outbox[0]) if side.outbox else _NOTHING
            durable = self._durables((side.group, side.content, side.ring, side.writes, side.runs))
            idle = not side.inbox and not side.outbox and not self._model.workers.stalled(side.worker)
            self._seen.append(Seen(message, durable, idle))
        return number


class Walk(NamedTuple):
    """How much was explored, and what was met on the way: phases, actions, and marks as Model.met lists them."""

    states: int
    steps: int
    met: frozenset[str]


def explore(setting: Setting, *, folded: bool = True) -> Walk:
    """Visit every state. Raises ViolationError, with a shortest trace, at the first that breaks a promise."""
    model, explorer = Model(setting), Explorer()
    if folded:
        explorer.walk(Folded(model))
    else:
        explorer.walk(model)
    return Walk(explorer.states, explorer.steps, frozenset(model.met | model.table.met))
