"""Views and links that MLflow's UI is given: written once, and never over what somebody wrote."""

from pathlib import Path
from typing import Any

import mlflow
import pytest

from stages.pipeline.tracking_store import EXPERIMENT, open_store
from stages.pipeline.tracking_views import NOTE, VIEW_TAG, views
from tests.pipeline.stores import make_store


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    make_store(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return open_store().client  # type: ignore[no-any-return]


def tags(client: mlflow.MlflowClient) -> dict[str, Any]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return dict(experiment.tags)


def test_every_view_is_there_and_linked_to(client: mlflow.MlflowClient) -> None:
    found = tags(client)
    assert {name.removeprefix(VIEW_TAG) for name in found if name.startswith(VIEW_TAG)} == set(views())
    assert all(f"viewStateShareKey={name}" in found[NOTE] for name in views())


def test_a_view_of_another_version_is_renewed_and_a_description_of_one_s_own_kept(client: mlflow.MlflowClient) -> None:
    before = tags(client)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    client.set_experiment_tag(experiment.experiment_id, NOTE, "Ours.")
    client.set_experiment_tag(experiment.experiment_id, f"{VIEW_TAG}curves", "{}")
    open_store()
    assert tags(client) == before | {NOTE: "Ours."}


def test_nothing_is_written_where_all_is_there(client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow.MlflowClient, "set_experiment_tag", lambda *_: pytest.fail("it wrote"))
    open_store()
