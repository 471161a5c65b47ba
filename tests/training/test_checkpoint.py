import json
import os
import resource
import shutil

import pytest
import torch

from textdiff.training.checkpoint import (
    CheckpointError,
    find_checkpoint,
    list_checkpoints,
    read_state,
    read_tensors,
    remove_debris,
    run_lock,
    save_checkpoint,
)

TENSORS = {"model": {"w": torch.arange(4096.0)}, "optimizer": {"exp_avg/w": torch.ones(3), "step/w": torch.tensor(2.0)}}
FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def save(root, step, keep=2):
    return save_checkpoint(root, step, TENSORS, {"step": step}, keep)


def test_round_trip_and_retention(tmp_path):
    for step in (1, 2, 10):
        save(tmp_path, step)
    newest = find_checkpoint(tmp_path)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000010", "step-00000002"]
    assert read_state(newest) == {"step": 10}
    for name, tensors in TENSORS.items():
        assert {key: value.tolist() for key, value in read_tensors(newest, name).items()} == {k: v.tolist() for k, v in tensors.items()}


def damages(file):
    size = file.stat().st_size
    for share in (0, 0.5, 0.99):
        yield f"cut to {share}", lambda share=share: os.truncate(file, int(size * share))
    yield "deleted", file.unlink

    def flip():
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)

    yield "one bit flipped", flip


@pytest.mark.parametrize("name", FILES)
def test_every_damage_to_every_file_is_found(tmp_path, name):
    for i in range(5):
        root = tmp_path / str(i)
        save(root, 1)
        newest = save(root, 9)
        what, damage = list(damages(newest / name))[i]
        damage()
        said = []
        assert find_checkpoint(root, said.append).name == "step-00000001", what
        assert len(said) == 1
        assert "step-00000009" in said[0]
        save(root, 5, keep=1)  # the damaged one must not count as the newest
        assert find_checkpoint(root, said.append).name == "step-00000005"


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path):
    (save(tmp_path, 1) / "state.json").unlink()
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"state\.json is missing"):
            find_checkpoint(tmp_path)


def test_full_disk_leaves_the_old_checkpoints_and_no_debris(tmp_path):
    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(CheckpointError, match="free some space") as caught:
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert find_checkpoint(tmp_path).name == "step-00000001"


def test_killed_while_writing_or_between_the_renames(tmp_path):
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "step-00000002.tmp-99")
    (tmp_path / "step-00000001").rename(tmp_path / "step-00000001.old-99")
    assert find_checkpoint(tmp_path).name == "step-00000001"
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    remove_debris(tmp_path)
    assert len(list_checkpoints(tmp_path)) == 1


def test_manifest_covers_every_file(tmp_path):
    folder = save(tmp_path, 1)
    assert set(json.loads((folder / "manifest.json").read_text())) == {path.name for path in folder.iterdir()} - {"manifest.json"}


def test_second_run_is_locked_out_and_a_dead_owner_is_not_waited_for(tmp_path):
    with run_lock(tmp_path), pytest.raises(ValueError, match=str(os.getpid())), run_lock(tmp_path):
        pass
    (tmp_path / "run.lock").write_text("4194304")  # what a killed process leaves behind
    with run_lock(tmp_path):
        assert (tmp_path / "run.lock").read_text() == str(os.getpid())


def test_folders_of_like_name_are_the_users(tmp_path):
    kept = ["model", "model.old-baseline", "notes.tmp-x", "step-1.tmp-7"]
    for name in [*kept, "model.tmp-7", "model.old-7", "step-00000003.tmp-7"]:
        (tmp_path / name).mkdir()
    remove_debris(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
