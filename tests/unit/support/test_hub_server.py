"""The local Hub answers the real client as the Hub does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard, get_session, get_token, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoConfig, LlamaConfig
from transformers.utils.hub import hf_api


def test_commits_stay(hub):
    """A repository is pushed and pulled; a former commit, a tag and a branch have what they had."""
    api = HfApi()
    repo = api.create_repo("me/model", private=True)
    assert (repo.repo_id, repo.endpoint) == ("me/model", hub.endpoint)
    assert api.create_repo("me/model", exist_ok=True).repo_id == "me/model"
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("me/model")
    first = api.upload_file(path_or_fileobj=b"one", path_in_repo="folder/a.txt", repo_id="me/model")
    assert first.oid == hub.commit("me/model") == api.model_info("me/model").sha
    assert first == f"{hub.endpoint}/me/model/commit/{first.oid}"
    api.create_tag("me/model", tag="v1")
    api.create_branch("me/model", branch="other")
    second = api.upload_file(path_or_fileobj=b"two", path_in_repo="folder/a.txt", repo_id="me/model")
    for revision, text in ((first.oid, "one"), ("v1", "one"), ("other", "one"), ("main", "two"), (second.oid, "two")):
        assert Path(hf_hub_download("me/model", "folder/a.txt", revision=revision)).read_text() == text
        assert hub.files("me/model", revision) == {"folder/a.txt": text.encode()}
    assert {entry.name for entry in api.list_repo_refs("me/model").branches} == {"main", "other"}
    assert [entry.commit_id for entry in api.list_repo_commits("me/model")][:2] == [second.oid, first.oid]
    folder = Path(snapshot_download("me/model", revision="v1"))
    assert [path.name for path in folder.rglob("*.txt")] == ["a.txt"]
    assert hub.downloads("me/model") == ["folder/a.txt"] * 2  # the cache knows both contents
    assert b"two" in hub.pushed()
    assert hub.token.encode() not in hub.pushed()


def test_a_pull_request_and_a_folder(hub, tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "b.bin").write_bytes(bytes(range(256)))
    (tmp_path / "a.txt").write_text("a")
    hub.add_repo("me/data", tmp_path, repo_type="dataset")
    hub.add_repo("me/data", {"a.txt": "a"}, repo_type="dataset", title="less")
    answer = HfApi().upload_folder(folder_path=tmp_path, repo_id="me/data", repo_type="dataset", create_pr=True)
    assert answer.pr_revision == "refs/pr/1"
    assert set(hub.files("me/data", repo_type="dataset")) == {"a.txt"}
    assert set(hub.files("me/data", "refs/pr/1", repo_type="dataset")) == {"a.txt", "inner/b.bin"}
    names = [entry.path for entry in HfApi().list_repo_tree("me/data", repo_type="dataset", revision="refs/pr/1")]
    assert names == ["a.txt", "inner"]
    assert HfApi().get_paths_info("me/data", ["a.txt", "b.txt"], repo_type="dataset")[0].size == 1


def test_what_is_refused(hub, monkeypatch):
    hub.add_repo("me/open", {"a.txt": "a"})
    hub.add_repo("me/private", {"a.txt": "a"}, private=True)
    hub.add_repo("me/gated", {"a.txt": "a"}, gated=True)
    for repo, options, error in (
        ("me/none", {}, RepositoryNotFoundError),
        ("me/private", {"token": False}, RepositoryNotFoundError),
        ("me/gated", {"token": False}, GatedRepoError),
        ("me/open", {"revision": "v9"}, RevisionNotFoundError),
        ("me/open", {"filename": "b.txt"}, EntryNotFoundError),
    ):
        with pytest.raises(error):
            hf_hub_download(repo, **{"filename": "a.txt", **options})
    assert hub.downloads() == []
    assert HfApi().whoami()["name"] == "me"
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(token="hf_other").upload_file(path_or_fileobj=b"a", path_in_repo="b.txt", repo_id="me/open")


def test_sizes_that_are_not_true(hub):
    hub.add_repo("me/model", {"model.safetensors": b""}, sizes={"model.safetensors": 10**15})
    assert HfApi().model_info("me/model", files_metadata=True).siblings[0].size == 10**15


def test_cards(hub):
    ModelCard("---\ntags: [a]\n---\nHello").validate()
    body = {"repoType": "model", "content": "---\ntags: a: b\n---\nHello"}
    answer = get_session().post(f"{hub.endpoint}/api/validate-yaml", json=body)
    assert answer.status_code == 400
    assert "mapping values" in answer.text


def test_transformers(hub):
    LlamaConfig(hidden_size=64).push_to_hub("me/config", token=hub.token)
    assert AutoConfig.from_pretrained("me/config").hidden_size == 64
    assert hf_api().endpoint == hub.endpoint


@pytest.mark.slow
def test_other_processes(hub):
    hub.add_repo("me/config", {"config.json": '{"model_type": "llama", "hidden_size": 64}'})
    code = "from transformers import AutoConfig; print(AutoConfig.from_pretrained('me/config').hidden_size)"
    done = subprocess.run([sys.executable, "-c", code], env=hub.environment(), capture_output=True, text=True)
    assert done.stdout.strip() == "64", done.stderr


@pytest.mark.parametrize("first", [True, False])
def test_every_test_has_its_own(hub, first):
    assert not hub.repositories
    assert get_token() == hub.token
    hub.add_repo("me/model", {"config.json": yaml.safe_dump({"a": 1})})


def test_datasets(hub):
    datasets = pytest.importorskip("datasets")
    commits = [
        hub.add_repo("me/data", {"train.jsonl": f'{{"answer": "{answer}"}}'}, repo_type="dataset") for answer in "23"
    ]
    for revision, answer in ((None, "3"), *zip(commits, "23", strict=True)):
        assert str(datasets.load_dataset("me/data", split="train", revision=revision)[0]["answer"]) == answer
