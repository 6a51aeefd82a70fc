"""What was found against what it should be."""

from collections.abc import Callable, Iterator

from benchmarks.machine import Row

Found = dict[str, list[Row]]


def targets(found: Found, small: bool) -> list[Row]:
    """Return a row for each target: holds, falls short, or not measured. `small`: figures of tiny sizes are none."""
    if small:
        found = {table: rows for table, rows in found.items() if table.startswith(("parity", "faults"))}
    return [*accuracy(found), *speed(found), *checks(found)]


def row(kind: str, target: str, value: float | None, limit: float, least: bool = True) -> Row:
    """Return the row of a target. `least`: the value must be at least `limit`, not at most."""
    if value is None:
        return {"kind": kind, "target": target, "found": "", "result": "not measured"}
    holds = value >= limit if least else value <= limit
    return {"kind": kind, "target": target, "found": value, "result": "holds" if holds else "falls short"}


def accuracy(found: Found) -> Iterator[Row]:
    ours = [each for each in found.get("forward: clips/s", []) if each["what"].startswith("ours")]
    published = [each for each in found.get("parity: published numbers", []) if each["network"] != "reference"]
    alone = found.get("parity: attention against float64", [])
    for network in ("kernel", "compiled"):
        those = [each for each in published if each["network"] == network]
        share = most(those, "of the limit")
        yield row("accuracy", f"published numbers, {network}: share of the limit", share, 1, least=False)
    short = float(sum(each["result"] != "holds" for each in alone)) if alone else None
    yield row("accuracy", "attention alone against float64: cases that fall short", short, 0, least=False)
    peers = {
        each["variant"]: each for each in found.get("forward: clips/s", []) if each["what"] == "peer bf16 autocast"
    }
    half = [each for each in ours if "bf16" in each["what"] and each["variant"] in peers]
    beside = [each["relative L2"] / peers[each["variant"]]["relative L2"] for each in half]
    yield row(
        "accuracy",
        "embeddings in bf16 against the peer's fp32: relative L2 <= that of its autocast",
        max(beside, default=None),
        1,
        least=False,
    )
    yield row("accuracy", "embeddings against the peer's fp32: cosine >= 0.9995", least_of(ours, "cosine"), 0.9995)


def speed(found: Found) -> Iterator[Row]:
    ratios = {(each["variant"], each["what"]): each for each in found.get("forward: ratios", [])}
    rates = {(each["variant"], each["what"]): each for each in found.get("forward: clips/s", [])}

    def best(variant: str, against: str) -> float | None:
        """Return our best rate in bf16 over the peer's."""
        values = [ratios.get((variant, what), {}).get(f"x {against}") for what in ("ours bf16", "ours bf16 compiled")]
        return max((value for value in values if value is not None), default=None)

    for variant in ("T", "B"):
        yield row("speed", f"{variant} bf16 >= 4 x the peer's autocast eager", best(variant, "peer bf16 autocast"), 4)
        yield row("speed", f"{variant} bf16 >= 2 x the peer compiled", best(variant, "peer bf16 compiled"), 2)
    shares = [rates[key]["share of peak"] for key in (("B", "ours bf16"), ("B", "ours bf16 compiled")) if key in rates]
    yield row("speed", "B bf16 >= 45 % of the measured peak", max(shares, default=None), 0.45)
    yield row("speed", "T fp32 >= 2 x the peer's fp32", ratios.get(("T", "ours fp32"), {}).get("x peer fp32"), 2)
    ends = {each["overlap"]: each for each in found.get("feed: end to end", [])}
    yield row("speed", "end to end >= 8 x the usual script at overlap 2", ends.get(2, {}).get("ratio"), 8)
    roofline = least_of(list(ends.values()), "of the slower one")
    yield row("speed", "end to end >= 0.9 of the slower of decoding and the network", roofline, 0.9)
    for each in found.get("startup: start", []):
        if each["what"] == "T, not compiled, warm":
            yield row("speed", "start-up of T without compiling <= 6 s", each["seconds"], 6, least=False)
            return
    yield row("speed", "start-up of T without compiling <= 6 s", None, 6)


def checks(found: Found) -> Iterator[Row]:
    """Yield the checks of the section faults, which hold or fail."""
    rows = found.get("faults: checks", [])
    if not rows:
        yield row("faults", "faults", None, 1)
    for each in rows:
        result = "holds" if each["result"] == "holds" else "falls short"
        yield {"kind": "faults", "target": each["what"], "found": each["found"], "result": result}


def most(rows: list[Row], name: str) -> float | None:
    return _one(rows, name, max)


def least_of(rows: list[Row], name: str) -> float | None:
    return _one(rows, name, min)


def _one(rows: list[Row], name: str, choose: Callable[[list[float]], float]) -> float | None:
    values = [float(row[name]) for row in rows if row.get(name) is not None]
    if any(value != value for value in values):
        return float("nan")  # which no limit allows
    return choose(values) if values else None
