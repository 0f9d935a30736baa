"""Small dataset files as other programs write them, and a pickle that would do something if it were loaded."""

import json
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet

# Two episodes of three and two steps, told apart by every number in them.
OBS = [np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]), np.array([[10.0, 11.0], [12.0, 13.0]])]
ACTION = [np.array([[0.5], [1.5], [2.5]]), np.array([[3.5], [4.5]])]
REWARD = [np.array([0.0, 0.0, 1.0]), np.array([0.0, 2.0])]


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def write_pickle(path: Path, sprung: Path, protocol: int = pickle.DEFAULT_PROTOCOL) -> Path:
    """Write a pickle that creates ``sprung`` when loaded; that it does is part of the test."""
    content = pickle.dumps(Trap(sprung), protocol=protocol)
    pickle.loads(content)
    assert sprung.exists()
    sprung.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_robomimic(path: Path) -> Path:
    """Write two demonstrations numbered 2 and 10, which sorted as text would change places."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = 5
        for number, (obs, action, reward) in zip((2, 10), zip(OBS, ACTION, REWARD, strict=True), strict=True):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = len(obs)
            demo.create_dataset("actions", data=action)
            demo.create_dataset("rewards", data=reward)
            demo.create_dataset("obs/first", data=obs[:, 0])
            demo.create_dataset("obs/second", data=obs[:, 1:], compression="gzip")
            demo.create_dataset("obs/camera", data=np.zeros((len(obs), 4, 4, 3), np.uint8))
    return path


def write_minari(folder: Path, *, nested: bool = False, **metadata: object) -> Path:
    """Write the folder of a dataset whose metadata name code to import."""
    (folder / "data").mkdir(parents=True)
    with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
        for e, (obs, action, reward) in enumerate(zip(OBS, ACTION, REWARD, strict=True)):
            episode = file.create_group(f"episode_{e}")
            episode.attrs.update({"id": e, "total_steps": len(action)})
            seen = np.concatenate([obs, [[99.0, 99.0]]])
            if nested:
                episode.create_dataset("observations/b", data=seen[:, :1])
                episode.create_dataset("observations/a/_index_0", data=seen[:, 1])
            else:
                episode.create_dataset("observations", data=seen, chunks=True, maxshape=(None, 2))
            episode.create_dataset("actions", data=action)
            for name, values in (("rewards", reward), ("terminations", reward > 0), ("truncations", reward < 0)):
                episode.create_dataset(name, data=values)
    spec = json.dumps({"id": "Trap-v0", "entry_point": "no_such_module_anywhere:make"})
    told = {"total_episodes": 2, "total_steps": 5, "data_format": "hdf5", "env_spec": spec} | metadata
    (folder / "data" / "metadata.json").write_text(json.dumps(told))
    return folder


def write_lerobot(folder: Path, *, one_file: bool = False, **info: object) -> Path:
    """Write version 2 of the layout, a file for each episode, or version 3, one file for all."""
    (folder / "meta").mkdir(parents=True)
    told = {
        "codebase_version": "v3.0" if one_file else "v2.1",
        "total_episodes": 2,
        "total_frames": 5,
        "fps": 10,
        "data_path": "../../{episode_index.__class__}/elsewhere.parquet",
    }
    (folder / "meta" / "info.json").write_text(json.dumps(told | info))
    tables = [lerobot_table(e) for e in range(2)]
    chunk = folder / "data" / "chunk-000"
    chunk.mkdir(parents=True)
    if one_file:
        pyarrow.parquet.write_table(pyarrow.concat_tables(tables[::-1]), chunk / "file-000.parquet")
    else:
        for e, table in enumerate(tables):
            pyarrow.parquet.write_table(table, chunk / f"episode_{e:06d}.parquet")
    return folder


def lerobot_table(e: int, **columns: pyarrow.Array) -> pyarrow.Table:
    """Return the steps of episode e, with some columns replaced."""
    fixed = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(OBS[e].ravel(), pyarrow.float32()), 2)
    content = {
        "observation.state": fixed,
        "action": pyarrow.array(ACTION[e].tolist(), pyarrow.list_(pyarrow.float32())),
        "episode_index": pyarrow.array([e] * len(OBS[e])),
        "frame_index": pyarrow.array(list(range(len(OBS[e])))),
        "next.reward": pyarrow.array(REWARD[e], pyarrow.float32()),
        "task": pyarrow.array(["text"] * len(OBS[e])),
    }
    return pyarrow.table(content | columns)
