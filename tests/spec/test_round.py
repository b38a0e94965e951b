"""A round, whatever happens to it and in whatever order."""

from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from fleetfold.round.decide import TRANSITIONS, Decision, decide, diagram, opened
from fleetfold.round.events import (
    Arrived,
    Disqualified,
    Event,
    Fold,
    Folded,
    GiveUp,
    Invite,
    Publish,
    Refused,
    Resumed,
    Stopped,
    Ticked,
    WakeAt,
)
from fleetfold.round.state import ENDED, Phase, Policy, Round


def a_round(
    target: int = 3, quorum: int = 2, invited: int = 4, deadline: float = 10.0, owed: int | None = None
) -> Round:
    """`owed`: updates that the round before owes to this one, which is then buffered."""
    policy = Policy(target=target, quorum=quorum, deadline=deadline, lease=5.0, buffered=owed is not None)
    round = Round(
        run="r", number=2, base=0, cohort="c", invited=invited, policy=policy, opened_at=100.0,
        owed=frozenset((1, seat) for seat in range(owed or 0)),
    )  # fmt: skip
    return opened(round, 100.0).round


def after(round: Round, *events: Event, now: float = 101.0) -> Decision:
    decision = Decision(round)
    for event in events:
        decision = decide(decision.round, event, now)
    return decision


def arrived(*seats: int) -> Arrived:
    return Arrived(frozenset(seats))


def credited(*seats: int) -> Arrived:
    """Updates of the round before, and that they are not owed any more."""
    return Arrived(credits=frozenset(map(str, seats)), answered=frozenset((1, seat) for seat in seats))


def excused(*seats: int) -> Arrived:
    """Devices of the round before that were refused there."""
    return Arrived(answered=frozenset((1, seat) for seat in seats))


def refused(*seats: int) -> Refused:
    return Refused(frozenset(seats))


def unfit(*seats: int) -> Disqualified:
    return Disqualified(frozenset(seats))


def test_opening_invites_the_cohort_and_sets_the_alarm_for_the_deadline() -> None:
    decision = opened(a_round(), 100.0)
    assert decision.effects == (Invite(), WakeAt(110.0))


def test_an_update_is_awaited_until_the_target_and_the_reason_says_how_many_and_how_long() -> None:
    decision = after(a_round(), arrived(0), arrived(1))
    assert decision.round.phase is Phase.OPEN
    assert decision.reason == "waiting: 2 of 3 updates, 9 s left"
    assert after(decision.round, arrived(2)).effects == (Fold(),)


def test_the_deadline_folds_with_a_quorum_and_fails_without() -> None:
    two, one = after(a_round(), arrived(0, 1)).round, after(a_round(), arrived(0)).round
    assert after(two, Ticked(), now=110.0).round.phase is Phase.FOLDING
    failed = after(one, Ticked(), now=110.0)
    assert failed.round.phase is Phase.FAILED
    assert failed.effects == (GiveUp(),)
    assert failed.reason == "1 update, quorum 2: deadline passed"


def test_nobody_is_waited_for_when_all_have_answered() -> None:
    decision = after(a_round(target=4), arrived(0, 1), refused(2), refused(3))
    assert decision.round.phase is Phase.FOLDING
    assert decision.reason == "folding 2 updates: every device has answered, 2 refused"
    assert after(a_round(), refused(0, 1, 2), arrived(3)).round.phase is Phase.FAILED


def test_the_users_own_rule_may_close_the_round_earlier_or_later_than_the_target() -> None:
    def at_one(round: Round, now: float) -> str:
        return "one is enough for me" if round.arrived else ""

    assert decide(a_round(), arrived(0), 101.0, at_one).round.phase is Phase.OPEN, "below the quorum"
    decision = decide(a_round(quorum=1), arrived(0), 101.0, at_one)
    assert decision.round.phase is Phase.FOLDING
    assert decision.reason == "folding 1 update: one is enough for me"
    patient = decide(a_round(), arrived(0, 1, 2), 101.0, lambda round, now: "")
    assert patient.round.phase is Phase.OPEN, "a rule of the user's own replaces the target"


def test_an_update_found_unfit_in_the_fold_is_taken_out_and_the_rest_folded_again() -> None:
    folding = after(a_round(), arrived(0, 1, 2)).round
    again = after(folding, unfit(1))
    assert again.effects == (Fold(),)
    assert again.round.arrived == {0, 2}
    assert after(again.round, unfit(2)).round.phase is Phase.FAILED, "below the quorum there is no model"


def test_a_fold_of_another_set_than_the_rounds_is_not_published() -> None:
    folding = after(a_round(), arrived(0, 1, 2)).round
    smaller = after(folding, unfit(1)).round
    stale = after(smaller, Folded(frozenset({0, 1, 2}), model="m"))
    assert stale.round == smaller
    assert stale.reason.startswith("ignored")


def test_a_buffered_round_counts_late_updates_towards_target_and_quorum() -> None:
    decision = after(a_round(owed=3), arrived(0), credited(1), credited(2))
    assert decision.effects == (Fold(),)
    assert decision.reason == "folding 3 updates, 2 of earlier rounds: target 3 reached"
    late = after(a_round(owed=3), credited(1, 2), Ticked(), now=110.0)
    assert late.reason == "folding 2 updates, 2 of earlier rounds: deadline passed"
    assert after(late.round, Disqualified(credits=frozenset("1"))).round.phase is Phase.FAILED
    assert after(a_round(), arrived(0), credited(1, 2)).reason.startswith("waiting: 1 of 3"), "not buffered"


def test_a_buffered_round_is_not_over_while_updates_are_owed_to_it_and_at_its_deadline_it_is() -> None:
    waiting = after(a_round(owed=2), refused(0, 1, 2, 3))
    assert waiting.reason == "waiting: 0 of 3 updates, 9 s left"
    assert after(waiting.round, Ticked(), now=110.0).reason == "0 updates, quorum 2: deadline passed"
    assert after(waiting.round, excused(0)).round.phase is Phase.OPEN
    over = after(waiting.round, excused(0), credited(1))
    assert over.reason == "1 update, 1 of earlier rounds, quorum 2: every device has answered, 4 refused"


def test_a_buffered_round_may_invite_nobody_and_live_from_what_is_owed() -> None:
    decision = opened(a_round(invited=0, owed=3), 100.0)
    assert decision.reason == "invited 0 devices, 3 updates owed"
    assert after(decision.round, credited(0, 1, 2)).round.phase is Phase.FOLDING
    assert after(decision.round, Resumed(), now=105.0).round.deadline_at == 115.0
    assert after(a_round(invited=0), Ticked()).reason == "0 updates, quorum 2: nobody is at work"


def test_a_silent_folder_is_replaced_when_its_lease_is_over() -> None:
    folding = after(a_round(), arrived(0, 1, 2)).round
    assert not after(folding, Ticked(), now=105.9).effects
    assert after(folding, Ticked(), now=106.0).effects == (Fold(),)


def test_who_was_away_with_the_coordinator_is_given_the_full_time_again() -> None:
    again = after(after(a_round(), arrived(0)).round, Resumed(), now=500.0)
    assert again.round.deadline_at == 510.0
    assert Invite() in again.effects
    assert again.round.arrived == {0}


def test_the_first_answer_of_a_device_counts() -> None:
    assert after(a_round(), refused(0), arrived(0)).round.arrived == frozenset()
    assert after(a_round(), arrived(0), refused(0)).round.refused == frozenset()
    assert after(a_round(), arrived(0, 1, 2), refused(0)).round.arrived == {0, 1, 2}


def test_the_diagram_is_drawn_from_the_table() -> None:
    for phase, event in TRANSITIONS:
        for to in TRANSITIONS[phase, event].to:
            assert to == phase or f"{phase.name} --> {to.name}" in diagram()


class AnyRound(RuleBasedStateMachine):
    """Duplicates, reorderings, silence, refusals, lost folders, and deaths between commit and act."""

    @initialize(
        quorum=st.integers(1, 4), more=st.integers(0, 3), invited=st.integers(0, 3),
        owed=st.none() | st.integers(0, 4),
    )  # fmt: skip
    def opened(self, quorum: int, more: int, invited: int, owed: int | None) -> None:
        target = quorum + more
        self.now, self.path, self.published, self.todo = 100.0, [Phase.OPEN], 0, []
        self.seen: list[Event] = []
        self.round = a_round(target=target, quorum=quorum, invited=target + invited, owed=owed)

    def feed(self, event: Event) -> None:
        before, decision = self.round, decide(self.round, event, self.now)
        replayed = decide(decision.round, event, self.now)
        if not isinstance(event, Resumed):
            assert replayed.round == decision.round, "replaying an event changes nothing"
            assert not replayed.effects
        assert decision.reason, "every decision says why"
        if before.phase is Phase.OPEN and decision.round.phase is Phase.FAILED:
            unheard = self.now < before.deadline_at and len(decision.round.owed)
            assert not unheard or isinstance(event, Stopped), "it does not fail while updates may still come"
        if decision.round.phase is not before.phase:
            self.path.append(decision.round.phase)
        self.round, self.todo = decision.round, [*self.todo, *decision.effects]
        self.seen.append(event)

    @rule(seats=st.frozensets(st.integers(0, 9)))
    def updates_arrive(self, seats: frozenset[int]) -> None:
        self.feed(Arrived(frozenset(s for s in seats if s < self.round.invited)))

    @rule(seats=st.frozensets(st.integers(0, 3)), fit=st.booleans())
    def owed_updates_come(self, seats: frozenset[int], fit: bool) -> None:
        owed = {seat for seat in seats if (1, seat) in self.round.owed}
        self.feed(credited(*owed) if fit else excused(*owed))

    @rule(seats=st.frozensets(st.integers(0, 9), max_size=2))
    def devices_are_refused(self, seats: frozenset[int]) -> None:
        self.feed(Refused(frozenset(s for s in seats if s < self.round.invited)))

    @rule(seats=st.frozensets(st.integers(0, 9), max_size=2))
    def the_fold_finds_updates_unfit(self, seats: frozenset[int]) -> None:
        self.feed(Disqualified(seats & self.round.arrived))

    @rule()
    def somebody_stops_the_run(self) -> None:
        self.feed(Stopped())

    @rule(seconds=st.floats(0, 8))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.feed(Ticked())

    @rule()
    def the_coordinator_comes_back(self) -> None:
        self.feed(Resumed())

    @rule(data=st.data())
    def an_old_message_comes_again(self, data: st.DataObject) -> None:
        if self.seen:
            self.feed(data.draw(st.sampled_from(self.seen)))

    @rule(acknowledged=st.booleans())
    def the_first_effect_is_done_and_perhaps_its_doer_dies_before_saying_so(self, acknowledged: bool) -> None:
        if not self.todo:
            return
        effect = self.todo[0]
        if acknowledged:
            self.todo = self.todo[1:]
        if isinstance(effect, Fold):
            self.feed(Folded(self.round.arrived, self.round.credits, "m", "d"))
        if isinstance(effect, Publish):
            self.published += acknowledged

    @invariant()
    def phases_only_move_forward(self) -> None:
        order = [Phase.OPEN, Phase.FOLDING, Phase.DONE]
        path = [phase for phase in getattr(self, "path", []) if phase is not Phase.FAILED]
        assert path == order[: len(path)]

    @invariant()
    def a_model_needs_a_quorum_and_is_published_once(self) -> None:
        if hasattr(self, "path"):
            assert self.published <= 1
            if self.round.phase is Phase.DONE:
                assert self.round.counted >= self.round.policy.quorum

    @invariant()
    def nobody_both_counts_and_is_refused(self) -> None:
        if hasattr(self, "path"):
            assert not self.round.arrived & self.round.refused

    @invariant()
    def an_ended_round_never_changes(self) -> None:
        if hasattr(self, "path") and self.round.phase in ENDED:
            for event in (arrived(0), refused(0), Ticked(), Stopped(), Resumed(), Folded(frozenset())):
                assert replace(decide(self.round, event, self.now + 99).round) == self.round


TestAnyRound = AnyRound.TestCase


def test_the_design_shows_the_diagram_as_it_is() -> None:
    design = (Path(__file__).parents[2] / "docs/design.md").read_text()
    assert diagram() in design, "docs/design.md: put in what fleetfold.round.decide.diagram() returns"
