"""Libraries that store the times of rows: clip-retrieval, webdataset, datasets, LanceDB, DuckDB, FiftyOne."""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .exports import FRACTION, Exported
from .table import Row


def _difference(found: dict[str, list[tuple[float, float]]], made: Exported) -> float:
    assert found.keys() == made.times.keys()
    return max(float(np.abs(np.array(found[name]) - made.times[name]).max()) for name in found)


def _collect(rows: Any) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for name, start, end in rows:
        found.setdefault(name, []).append((start, end))
    return found


def clip_retrieval(checkout: Path, folder: Path) -> list[Row]:
    """Its index, server and metadata, asked for the neighbours of each clip."""
    package = ModuleType("clip_retrieval")  # whose __init__ imports commands that need CLIP
    package.__path__ = [str(checkout / "clip_retrieval")]
    sys.modules["clip_retrieval"] = package
    back, faiss = importlib.import_module("clip_retrieval.clip_back"), importlib.import_module("faiss")
    made = Exported(folder, "clip-retrieval", FRACTION)
    values = np.load(made.folder / "img_emb/img_emb_0.npy").astype(np.float32)
    index = faiss.IndexFlatIP(values.shape[1])
    index.add(values)
    os.chdir(folder)  # where a file has the name of a video
    for name in made.values:
        Path(name).write_text("no image")
    provider = back.ParquetMetadataProvider(str(made.folder / "metadata"))
    columns = ["url", "image_path", "caption", "NSFW", "video", "start", "end"]
    resource = back.ClipResource(
        device="cpu", model=None, preprocess=None, tokenizer=None, model_txt_mclip=None, safety_model=None,
        violence_detector=None, metadata_provider=provider, image_index=index, text_index=None,
        columns_to_return=columns, ivf_old_to_new_mapping=None, metadata_is_ordered_by_ivf=False,
        aesthetic_embeddings=None,
    )  # fmt: skip
    service = back.KnnService(clip_resources={"ours": resource})
    found: dict[int, Any] = {}
    for each in values:
        for hit in service.query(embedding_input=each.tolist(), num_images=99, num_result_ids=99, deduplicate=False):
            assert "image" not in hit
            assert hit["image_path"].startswith(f"{hit['video']}#t=")
            found[hit["id"]] = hit
    hits = [found[key] for key in sorted(found)]
    worst = _difference(_collect((hit["video"], hit["start"], hit["end"]) for hit in hits), made)
    return [Row("clip-retrieval", "KnnService, ParquetMetadataProvider", "yes", worst)]


def webdataset(checkout: Path, folder: Path) -> list[Row]:
    library: Any = importlib.import_module("webdataset")
    made = Exported(folder, "webdataset", FRACTION)
    found = {}
    for sample in library.WebDataset(f"{made.folder}/shard-000000.tar", shardshuffle=False).decode():
        name = sample["json"]["name"]
        assert np.array_equal(sample["features.npy"], made.values[name])
        found[name] = [(begin, end) for begin, end in sample["times.npy"].tolist()]
    return [Row("webdataset", "WebDataset", "yes", _difference(found, made))]


def datasets(checkout: Path, folder: Path) -> list[Row]:
    os.environ["HF_HOME"], os.environ["HF_HUB_OFFLINE"] = str(folder / "cache"), "1"
    library: Any = importlib.import_module("datasets")
    rows = []
    made = Exported(folder, "parquet", FRACTION)
    data = library.load_dataset(str(made.folder), split="train")
    name = type(data.features["feature"]).__name__
    assert data.features["feature"].length == data[0]["feature"].__len__()
    worst = _difference(_collect((row["id"], row["start"], row["end"]) for row in data), made)
    rows.append(Row("datasets", f"load_dataset, parquet ({name})", "yes", worst))
    made = Exported(folder, "webdataset", FRACTION)
    data = library.load_dataset(str(made.folder), split="train")
    found = {row["json"]["name"]: [(begin, end) for begin, end in row["times.npy"]] for row in data}
    rows.append(Row("datasets", "load_dataset, webdataset", "yes", _difference(found, made)))
    return rows


def lancedb(checkout: Path, folder: Path) -> list[Row]:
    library: Any = importlib.import_module("lancedb")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    made = Exported(folder, "parquet", FRACTION)
    data = parquet.read_table(made.folder / "features.parquet")
    place = library.connect(str(folder / "lance")).create_table("clips", data)
    found = []
    for row in data.to_pylist():
        hit = place.search(np.array(row["feature"], np.float32)).limit(1).to_list()[0]
        assert (hit["id"], hit["row"]) == (row["id"], row["row"])
        found.append((hit["id"], hit["start"], hit["end"]))
    return [Row("LanceDB", "create_table, search", "yes", _difference(_collect(found), made))]


def duckdb(checkout: Path, folder: Path) -> list[Row]:
    library: Any = importlib.import_module("duckdb")
    made = Exported(folder, "parquet", FRACTION)
    size = next(iter(made.values.values())).shape[1]
    found = []
    for name, values in made.values.items():
        for k in range(len(values)):
            query = (
                f'select id, "row", start, "end" from read_parquet(?) '
                f"order by array_cosine_similarity(feature::float[{size}], ?::float[{size}]) desc limit 1"
            )
            hit = library.execute(query, [str(made.folder / "features.parquet"), values[k].tolist()]).fetchone()
            assert hit[:2] == (name, k)
            found.append((hit[0], hit[2], hit[3]))
    return [Row("DuckDB", "read_parquet, array_cosine_similarity", "yes", _difference(_collect(found), made))]


def fiftyone(checkout: Path, folder: Path) -> list[Row]:
    """Temporal detections of clips: frames count from 1 there, and the last one is included."""
    os.environ["FIFTYONE_DATABASE_DIR"] = str(folder / "database")
    library: Any = importlib.import_module("fiftyone")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    made = Exported(folder, "parquet", FRACTION)
    samples: dict[str, Any] = {}
    for row in parquet.read_table(made.folder / "features.parquet").to_pylist():
        clip = library.TemporalDetection(label="clip", support=[row["first_frame"] + 1, row["end_frame"]])
        clip["start"], clip["end"] = row["start"], row["end"]
        samples.setdefault(row["id"], library.Sample(f"{row['id']}.mp4"))
        sample = samples[row["id"]]
        sample["clips"] = sample["clips"] if sample.has_field("clips") else library.TemporalDetections()
        sample["clips"].detections.append(clip)
    try:
        data = library.Dataset()
        data.add_samples(list(samples.values()))
        loads = "yes"
    except library.core.config.FiftyOneConfigError:
        data, loads = samples.values(), "samples, but no Dataset, because it found no MongoDB"
    found: dict[str, list[tuple[float, float]]] = {}
    for sample in data:
        clips = sample["clips"].detections
        found[Path(sample.filepath).stem] = [((c.support[0] - 1) / 25, c.support[1] / 25) for c in clips]
    return [Row("FiftyOne", "TemporalDetections", loads, _difference(found, made))]
