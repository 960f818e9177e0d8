"""The exchanges of a run: which there are, what devices answer, and what each one ends with.

A run is a sequence of exchanges, numbered from 1: the training rounds of its method, or of one
method after the other, and the vote that ends it. `Model.round` is the number of exchanges that are
closed.

Laws:

- The exchanges, and the shapes of every model and answer, follow from the plan, the number of
  classes and the width of the features.
- The model that follows an exchange depends on the model before, the added answers and the state
  that the coordinator keeps.
- With `vote = "off"` the models are those of `methods.combine`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from fedclip_edge.learning import ballot, carried_state, continuation, methods, mixture, strategies
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.method import LocalTask
from fedclip_edge.learning.norm_bound import NormBound, first_bound
from fedclip_edge.learning.run_steps import Step, has_vote, rounds_of, stages, steps
from fedclip_edge.learning.strategy import State, Total
from fedclip_edge.learning.unknown import RULE
from fedclip_edge.learning.update_check import check_update
from fedclip_edge.learning.vote_result import ballot_heads, log_decision, settle
from fedclip_edge.records import (
    ClassTexts,
    Layout,
    Model,
    Plan,
    Shapes,
    Update,
)


@dataclass(frozen=True, eq=False)
class Schedule:
    """The exchanges of one run. The plan has its number of rounds (`methods.with_defaults`)."""

    plan: Plan
    classes: ClassTexts
    dim: int  # D

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        return steps(self.plan)

    @cached_property
    def votes(self) -> frozenset[int]:
        """The numbers of the exchanges that are votes."""
        return frozenset(n for n, step in enumerate(self.steps, 1) if step.kind == "vote")

    @cached_property
    def stages(self) -> tuple[Plan, ...]:
        return stages(self.plan)

    @cached_property
    def is_closed_form(self) -> bool:
        """True if every training round is one of exact sums, which depend on no model."""
        return all(methods.get(stage.method).traits.sends_moments for stage in self.stages)

    def is_of_moments(self, closed: int) -> bool:
        """Return whether the answers to the exchange after `closed` ones are exact sums."""
        step = self._step(closed)
        traits = methods.get(self.stages[step.stage].method).traits
        return step.kind == "round" and traits.sends_moments

    def initial(self) -> Model:
        """Make the model of round 0; raises ConfigError for an unknown method or a bad option."""
        return replace(self._initial(0), method=self.plan.method)

    def start_from(self, model: Model, before: ClassTexts) -> tuple[Model, State]:
        """Make the model of round 0, and the coordinator's state, that go on from a model.

        `before` are the classes of that model. Raises ConfigError if the plan has nothing that can
        go on from it (`continuation.start_from`).
        """
        return continuation.start_from(
            self.initial(), self.stages, self.classes, self.dim, model, before
        )

    def with_rounds(self, rounds: int) -> Schedule:
        """The schedule of the same plan with another number of rounds.

        Raises ConfigError if the method does not allow it.
        """
        return replace(self, plan=methods.with_defaults(replace(self.plan, rounds=rounds)))

    def layout(self, closed: int) -> Layout:
        """Shapes of the model after `closed` exchanges, and of the answers to the next one.

        After the last exchange, the answers are those to the last one.
        """
        if closed < len(self.steps):
            step = self.steps[closed]
            if step.kind == "round":
                return self._layouts[step.stage]
            return Layout(self._ballot, {}, ballot.sum_shapes(self._shares))
        if has_vote(self.plan):
            return Layout(self._final, {}, ballot.sum_shapes(self._shares))
        return self._layouts[-1]

    def layouts(self) -> tuple[Layout, ...]:
        """Return the layout of each method's rounds, and of the vote."""
        firsts = {step: closed for closed, step in reversed(list(enumerate(self.steps)))}
        return tuple(map(self.layout, sorted(firsts.values())))

    def plan_of(self, closed: int) -> Plan:
        """Return the plan of the method that trains next, or trained last."""
        return self.stages[self._step(closed).stage]

    def bound(self, closed: int, norms: Mapping[int, list[float]] | None = None) -> NormBound:
        """Return the bound on an update's norm after `closed` exchanges.

        `norms` are those of the contributions to the closed exchanges, by number. Those of an
        earlier method and of a vote are not needed.
        """
        step = self._step(closed)
        bound = first_bound(self.stages[step.stage], self._layouts[step.stage])
        for number in self.numbers(closed):
            bound = bound.after((norms or {}).get(number, []))
        return bound

    def numbers(self, closed: int) -> range:
        """Return the numbers of the closed training rounds of the method that trains next."""
        stage = self._step(closed).stage
        before = sum(map(rounds_of, self.stages[:stage]))
        return range(before + 1, min(closed, before + rounds_of(self.stages[stage])) + 1)

    def total(self, closed: int, max_norm: float) -> Total:
        """Make an empty total for the exchange after `closed` ones."""
        if self._step(closed).kind == "vote":
            weight = max(self.plan.max_weight, ballot.MOST)
            return ExactSum(replace(self.plan, strategy=strategies.DEFAULT, max_weight=weight))
        return strategies.total(self.plan_of(closed), max_norm)

    def answer(self, task: LocalTask, min_votes: int) -> Update:
        """Compute a device's answer to the exchange after the task's model.

        Raises the errors of `methods.fit`.
        """
        step = self._step(task.model.round)
        if step.kind == "vote":
            methods.check_features(task.validation, task.classes, "validation features")
            return ballot.answer(
                task.model,
                task.validation,
                task.classes,
                min_votes,
                lambda name: methods.get(name).logits,
            )
        stage = self.stages[step.stage]
        model = replace(task.model, method=stage.method)
        return methods.fit(replace(task, plan=stage, model=model))

    def check(self, closed: int, update: Update, declared: int | None = None) -> None:
        """Raise PeerError, with the reason, if no device answers the next exchange like this.

        `declared` is the number of pictures of the device, if it is known.
        """
        if self._step(closed).kind == "vote":
            ballot.check(update, declared)
        else:
            check_update(self.plan_of(closed), update, declared)

    def close(
        self, model: Model, total: Total, state: State, *, decided: bool = True
    ) -> tuple[Model, State]:
        """Make the model and the state that follow an exchange from all answers to it.

        The state after a vote holds its choice (`ballot.choice_in`).
        `state` is empty before the first exchange. Without `decided` too few devices have voted,
        and the vote returns the default candidate.
        """
        closed = model.round
        step, following = self._step(closed), closed + 1
        if step.kind == "vote":
            method = methods.get(self.plan.method)
            kept = carried_state.kept_by(0, state)
            fallback = ballot.DEFAULT if method.without_vote is None else method.without_vote(kept)
            choice = ballot.decide(total.sums, fallback) if decided else ballot.Choice(fallback)
            log_decision(choice, decided=decided)
            return settle(self.plan, self.classes, model, choice, state), choice.to_state()
        stage = self.stages[step.stage]
        method = methods.get(stage.method)
        options = method.check_options(stage.options)
        model = replace(model, method=stage.method)
        is_last = following == len(self.steps) or self.steps[following] != step
        before = carried_state.carried(state)
        if not is_last or not has_vote(self.plan):
            model, its = method.combine(model, total, carried_state.of_method(state), options)
            return replace(model, method=self.plan.method), {**before, **its}
        assert method.vote is not None
        heads, kept = method.vote.open(model, total, carried_state.of_method(state), options)
        state = {**before, **carried_state.keep(step.stage, kept)}
        every = {**carried_state.heads_in(before), **heads}
        if self.steps[following].kind == "vote":
            return ballot.made(self.plan.method, following, every, self._shares), state
        state |= carried_state.keep_heads(heads)
        stage_after = self.steps[following].stage
        initial = continuation.begin(self._initial(stage_after), stage_after, state)
        return replace(initial, method=self.plan.method, round=following), state

    def _step(self, closed: int) -> Step:
        return self.steps[min(closed, len(self.steps) - 1)]

    def _initial(self, stage: int) -> Model:
        return methods.initial(self.stages[stage], self.classes, self.dim)

    @cached_property
    def _layouts(self) -> tuple[Layout, ...]:
        return tuple(methods.plan_layout(stage, self.classes, self.dim) for stage in self.stages)

    @property
    def _shares(self) -> ballot.Shares:
        return methods.get(self.plan.method).shares

    @cached_property
    def _ballot(self) -> Shapes:
        return ballot.shapes({label: self._shape_of(label) for label in self._shares}, self._shares)

    @cached_property
    def _final(self) -> Shapes:
        labels: dict[str, None] = {}
        for i, stage in enumerate(self.stages):
            vote = methods.get(stage.method).vote
            assert vote is not None
            labels |= {
                label: None for label in vote.labels if i == 0 or label in ballot_heads(self.plan)
            }
        if list(labels) == [self.plan.method]:
            return {**self._shape_of(self.plan.method), **RULE}
        return {**mixture.shapes({label: self._shape_of(label) for label in labels}), **RULE}

    def _shape_of(self, label: str) -> Shapes:
        """Shapes of the parameters of a head."""
        for stage, layout in zip(self.stages, self._layouts, strict=True):
            if stage.method == mixture.method_of(label):
                return layout.parameters
        return {}


@dataclass(eq=False)
class Schedules:
    """The schedules of plans; that of the last plan is kept, because each exchange asks for it."""

    classes: ClassTexts
    dim: int  # D
    _last: Schedule | None = None

    def of(self, plan: Plan) -> Schedule:
        """Return the schedule of a plan, as `Schedule` is made with it."""
        if self._last is None or self._last.plan != plan:
            self._last = Schedule(plan, self.classes, self.dim)
        return self._last
