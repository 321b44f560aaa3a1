"""inventory.py and teardown.py: what is ours, what is to go, in which order, and what is said of what stays."""

from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragctl import deployment, teardown
from ragctl.cost import Price
from ragctl.deployment import KINDS, Ref
from ragctl.errors import LeaseHeld, PermissionDenied, ServiceError, Throttled
from ragctl.inventory import Found, Selection, plan
from ragctl.lease import hold
from ragctl.state import LocalState
from ragctl.teardown import remove
from tests.deployments import EMBEDDER, WRITER, Region, region_at_hand
from tests.servers.http import Fault
from tests.servers.sagemaker_things import Fate

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
PAST, FUTURE, LONG_AGO = "2026-11-20T11:59:59Z", "2026-11-20T12:00:01Z", "2026-11-01T00:00:00Z"


@pytest.fixture
def region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Region]:
    """A region with nothing in it, and no waiting."""
    with region_at_hand(tmp_path / "state", monkeypatch) as region:
        yield region


# --- the plan --------------------------------------------------------------------------------------------

MODEL, CONFIG, ENDPOINT = Ref("model", "m"), Ref("endpoint-config", "c"), Ref("endpoint", "e")
COMPONENT = Ref("inference-component", "i")
TARGET, ALARM = Ref("scaling-target", "inference-component/i"), Ref("alarm", "i-no-capacity")


def group(*, expires: str | None = None, status: str = "InService", created: str = LONG_AGO) -> list[Found]:
    """An endpoint with a component that scales, its config and model."""
    common: dict[str, Any] = {"stack": "s", "expires": expires, "created": created}
    return [
        Found(MODEL, **common),
        Found(CONFIG, **common),
        Found(ENDPOINT, status=status, uses=frozenset({CONFIG}), **common),
        Found(COMPONENT, uses=frozenset({ENDPOINT, MODEL}), **common),
        Found(TARGET, "s", uses=frozenset({COMPONENT})),
        Found(ALARM, "s", uses=frozenset({COMPONENT})),
    ]


def planned(found: list[Found], selection: Selection) -> list[Ref]:
    return [item.ref for item in plan(found, selection, NOW)]


def test_what_uses_others_goes_first() -> None:
    """Alarm and scaling, component, endpoint, config, model."""
    assert planned(group(), "stack") == [ALARM, TARGET, COMPONENT, ENDPOINT, CONFIG, MODEL]


@pytest.mark.parametrize(("expires", "goes"), [(PAST, True), (FUTURE, False), (None, False), ("soon", False)])
def test_what_is_past_its_time_goes_as_a_whole(expires: str | None, goes: bool) -> None:
    """The second counts; without a time, or with a text that is none, nothing is removed."""
    assert planned(group(expires=expires), "expired") == (planned(group(), "stack") if goes else [])


def test_an_expired_endpoint_takes_what_carries_no_time_with_it() -> None:
    """Its config and model cost nothing, but nobody else would ever remove them."""
    found = [
        Found(item.ref, item.stack, expires=PAST if item.ref == ENDPOINT else None, uses=item.uses)
        for item in group()
    ]
    assert set(planned(found, "expired")) == {ALARM, TARGET, COMPONENT, ENDPOINT, CONFIG, MODEL}


def test_what_a_living_endpoint_uses_stays() -> None:
    """A config past its time under an endpoint whose lease was renewed is in use."""
    found = [
        Found(
            item.ref,
            item.stack,
            status=item.status,
            expires=FUTURE if item.ref == ENDPOINT else PAST,
            uses=item.uses,
        )
        for item in group()
    ]
    assert planned(found, "expired") == []


def test_a_model_that_two_endpoints_use_stays_with_the_second() -> None:
    """Shared things outlive the first that goes."""
    other, its_config = Ref("endpoint", "other"), Ref("endpoint-config", "its")
    found = [
        Found(MODEL, "s", expires=PAST),
        Found(CONFIG, "s", expires=PAST, uses=frozenset({MODEL})),
        Found(ENDPOINT, "s", "InService", expires=PAST, uses=frozenset({CONFIG})),
        Found(its_config, "s", expires=FUTURE, uses=frozenset({MODEL})),
        Found(other, "s", "InService", expires=FUTURE, uses=frozenset({its_config})),
    ]
    assert planned(found, "expired") == [ENDPOINT, CONFIG]


def test_orphans_are_what_no_endpoint_uses() -> None:
    """And endpoints that failed, with all that is theirs."""
    lone = Found(Ref("model", "lone"), "s", created=LONG_AGO)
    assert planned([*group(), lone], "orphans") == [lone.ref]
    assert planned(group(status="Failed"), "orphans") == planned(group(), "stack")


def untagged(*, component: bool = False) -> list[Found]:
    """An endpoint that is not ours, on a config that is, or with a component of a model that is."""
    theirs = Found(Ref("endpoint", "theirs"), None, uses=frozenset() if component else frozenset({CONFIG}))
    carried = Found(Ref("inference-component", "theirs"), None, uses=frozenset({theirs.ref, MODEL}))
    return [theirs, carried] if component else [theirs]


@pytest.mark.parametrize("selection", ["expired", "orphans"])
@pytest.mark.parametrize(("component", "kept"), [(False, {CONFIG, MODEL}), (True, {MODEL})])
def test_what_an_endpoint_of_others_uses_stays(selection: Selection, component: bool, kept: set[Ref]) -> None:
    """Whatever else of ours it was made with, and is past its time or failed."""
    found = [
        Found(MODEL, "s", expires=PAST, created=LONG_AGO),
        Found(CONFIG, "s", expires=PAST, created=LONG_AGO, uses=frozenset({MODEL})),
        Found(ENDPOINT, "s", "Failed", expires=PAST, created=LONG_AGO, uses=frozenset({CONFIG})),
    ]
    going = plan(found, selection, NOW, untagged(component=component))
    assert {item.ref for item in going} == {MODEL, CONFIG, ENDPOINT} - kept


def test_the_young_are_no_orphans() -> None:
    """A model without an endpoint may be one that is being deployed right now."""
    recent = deployment.timestamp(NOW - timedelta(minutes=59))
    older = deployment.timestamp(NOW - timedelta(minutes=60))
    found = [
        Found(Ref("model", name), "s", created=created) for name, created in (("a", recent), ("b", older))
    ]
    assert planned(found, "orphans") == [Ref("model", "b")]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["endpoint", "endpoint-config", "model"]),
            st.integers(0, 4),
            st.sampled_from([PAST, FUTURE, None]),
            st.frozensets(st.integers(0, 4), max_size=2),
        ),
        max_size=15,
        unique_by=lambda row: row[:2],
    )
)
def test_no_plan_touches_a_living_endpoint_or_what_it_uses(
    rows: list[tuple[Any, int, str | None, Any]],
) -> None:
    """Whatever hangs together how: what a living endpoint needs is never in a plan by time."""
    below = {"endpoint": "endpoint-config", "endpoint-config": "model"}
    found = [
        Found(
            Ref(kind, str(number)),
            "s",
            "InService",
            expires=expires,
            uses=frozenset(Ref(below[kind], str(n)) for n in uses) if kind in below else frozenset(),  # type: ignore[arg-type] # a kind by its name
        )
        for kind, number, expires, uses in rows
    ]
    going = set(planned(found, "expired"))
    by_ref = {item.ref: item for item in found}
    for item in found:
        if item.ref.type == "endpoint" and item.expires != PAST:
            assert item.ref not in going
            for config in item.uses:
                assert config not in going
                assert config not in by_ref or not by_ref[config].uses & going
        if item.ref.type == "endpoint" and item.expires == PAST:
            assert item.ref in going


# --- removing --------------------------------------------------------------------------------------------


class Cloud:
    """Things by ref, each with the errors that its deletes meet first."""

    def __init__(
        self, *refs: Ref, errors: Mapping[Ref, list[Exception]] | None = None, status: str = ""
    ) -> None:
        self.there = set(refs)
        self.errors = dict(errors or {})
        self.status = status
        self.deleted: list[Ref] = []

    def describe(self, ref: Ref) -> Mapping[str, Any] | None:
        return {"EndpointStatus": self.status} if ref in self.there else None

    def delete(self, ref: Ref) -> bool:
        if self.errors.get(ref):
            raise self.errors[ref].pop(0)
        self.deleted.append(ref)
        self.there.discard(ref)
        return True


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teardown, "FIRST_POLL_S", 0.001)
    monkeypatch.setattr(teardown, "POLL_S", 0.001)


@pytest.mark.usefixtures("no_waiting")
def test_each_is_told_as_deleted_absent_or_left() -> None:
    """One that is refused keeps nobody else of its kind from going."""
    other = Ref("model", "other")
    absent = Ref("model", "absent")
    cloud = Cloud(MODEL, other, errors={MODEL: [ServiceError("no")]})
    outcome = {r.name: (r.action, r.status) for r in remove(cloud, {MODEL, other, absent})}
    assert outcome == {"m": ("left", "no"), "other": ("deleted", ""), "absent": ("absent", "")}


@pytest.mark.usefixtures("no_waiting")
def test_a_config_outlives_an_endpoint_that_stays() -> None:
    """Without it one would no longer see what the endpoint costs."""
    cloud = Cloud(MODEL, CONFIG, ENDPOINT, errors={ENDPOINT: [ServiceError("no")]}, status="InService")
    outcome = {r.name: (r.action, r.status) for r in remove(cloud, {MODEL, CONFIG, ENDPOINT})}
    assert outcome["c"] == outcome["m"] == ("left", "waits for what uses it")
    assert cloud.deleted == []


@pytest.mark.usefixtures("no_waiting")
def test_a_delete_is_tried_again_where_that_can_help() -> None:
    """While the endpoint is being made, and when the service is too busy to answer."""
    cloud = Cloud(
        ENDPOINT, errors={ENDPOINT: [ServiceError("in progress"), Throttled("slower")]}, status="Creating"
    )
    assert [r.action for r in remove(cloud, {ENDPOINT})] == ["deleted"]


@given(st.sets(st.sampled_from([MODEL, CONFIG, ENDPOINT, COMPONENT, TARGET, ALARM])))
def test_the_order_is_that_of_the_kinds(refs: set[Ref]) -> None:
    """Whatever is to go."""
    cloud = Cloud(*refs)
    remove(cloud, refs)
    assert cloud.there == set()
    assert [KINDS.index(ref.type) for ref in cloud.deleted] == sorted(KINDS.index(r.type) for r in refs)


# --- in an account ---------------------------------------------------------------------------------------


def test_twice_is_fine(region: Region) -> None:
    """The second time there is nothing."""
    experiment = region.experiment(generation=WRITER)
    region.deploy(experiment)
    assert len(region.teardown(experiment)) == 6
    assert region.teardown(experiment) == []
    assert not (region.state / deployment.record_name("test")).exists()


def test_without_the_record_the_tags_and_names_tell(region: Region) -> None:
    """A lost state location does not hide what costs."""
    experiment = region.experiment()
    region.deploy(experiment)
    (region.state / deployment.record_name("test")).unlink()
    region.teardown(experiment)
    assert region.control.existing() == []


def test_without_the_permission_to_search_by_tags(region: Region, caplog: pytest.LogCaptureFixture) -> None:
    """Record and names still tell of one experiment; of a whole account nothing can be told, and that is an error."""
    experiment = region.experiment()
    region.deploy(experiment)
    denied = Fault("error", "GetResources", 400, "AccessDeniedException", "no", times=None)
    region.control.faults.add(denied)
    with pytest.raises(PermissionDenied, match="tag:GetResources"):
        region.teardown(experiment, "expired")
    region.teardown(experiment)
    assert "looking for models by name and record only" in caplog.text
    assert region.control.existing() == []


def test_another_experiment_is_left_alone(region: Region) -> None:
    """Also one whose name begins with ours."""
    ours = region.experiment()
    theirs = region.experiment(
        name="test-2", embedding=EMBEDDER | {"endpoint": "theirs"}, state=str(region.state / "2")
    )
    region.deploy(theirs)
    before = region.control.existing()
    region.deploy(ours)
    region.teardown(ours)
    assert region.control.existing() == before


def test_the_cron_job_removes_what_is_past(region: Region) -> None:
    """Everywhere in the account and region, whoever made it; what is not past stays."""
    old = region.experiment(deployment={"expires_after": "1s"})
    new = region.experiment(
        name="new",
        embedding=EMBEDDER | {"endpoint": "theirs"},
        state=str(region.state / "new"),
        deployment={"expires_after": "8h"},
    )
    region.deploy(old)
    region.deploy(new)
    for path in region.control.existing():
        tags = region.control.thing(path).tags
        if tags["ragctl:stack"] == "test":
            tags["ragctl:expires"] = PAST
    region.teardown(new, "expired")
    assert {region.control.thing(path).tags["ragctl:stack"] for path in region.control.existing()} == {"new"}
    assert len(region.control.existing()) == 3


def test_the_tagging_api_lags(region: Region) -> None:
    """It names what is long gone; that is looked up, and is nothing to remove."""
    region.control.tagged_late.add("arn:aws:sagemaker:eu-west-1:123456789012:endpoint/gone")
    assert region.teardown(region.experiment(), "orphans") == []


def test_what_stays_is_told_with_its_cost(region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 8, each with its reason, and the endpoint with its price."""
    monkeypatch.setattr(teardown, "GONE_TIMEOUT_S", 0.1)
    experiment = region.experiment()
    region.deploy(experiment)
    region.control.thing("endpoint/ragctl-test-embedding").fate = Fate(delete_after=None)
    price = Price(1.515, "list", date(2026, 11, 1))
    with pytest.raises(ServiceError) as caught:
        teardown.remove_models(teardown.models(experiment), lambda _: price)
    lines = caught.value.message.splitlines()
    assert lines[0] == "some resources still exist:"
    assert lines[1] == "  endpoint ragctl-test-embedding: still Deleting, costs $1.51 an hour, $36.36 a day"
    assert caught.value.exit_status == 8
    record, _ = deployment.read(LocalState(region.state), "test")
    assert record is not None
    assert len(record.resources) == 3


def test_a_fault_at_any_call_is_made_good_by_the_next_teardown(region: Region) -> None:
    """Nothing is forgotten because one call failed."""
    experiment = region.experiment(
        deployment={"embedding": {"autoscaling": {"max": 2, "target_invocations": 9}}}
    )
    region.deploy(experiment)
    for number in range(40):
        region.control.faults.clear()
        region.control.faults.add(
            Fault("error", None, 400, "AccessDeniedException", "not allowed", skip=number)
        )
        try:
            region.teardown(experiment)
        except ServiceError:
            region.control.faults.clear()
            region.teardown(experiment)
        assert region.control.existing() == []
        region.control.faults.clear()
        region.deploy(experiment)
    region.control.faults.clear()
    region.teardown(experiment)


def test_while_it_is_being_deployed(region: Region) -> None:
    """Two at the same time would undo each other's work."""
    experiment = region.experiment()
    region.deploy(experiment)
    with (
        hold(LocalState(region.state), deployment.lease_name("test"), "deploy-models"),
        pytest.raises(LeaseHeld),
    ):
        region.teardown(experiment)
    assert len(region.control.existing()) == 3
