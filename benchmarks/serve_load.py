"""What edits cost a service: the same requests under many sets of edits, and without, of concurrent clients.

    OMP_NUM_THREADS=1 python benchmarks/serve_load.py --clients 16 --requests 500

A store is filled with edits of PocketEdit's dev split (``--edits`` in each of ``--sets``), a server is started on a
free port, and clients send chat completions, pictures and all, each under the next set. Blocks of requests with and
without edits take turns, so that both meet the same machine. Prints a line of JSON: errors, throughput as a ratio to
that without edits, and quantiles of latency in seconds and as such a ratio; and how long the answers are, for those
that edits give may be longer. Where others use the machine, too, the ratio of CPU time says more.
"""

import argparse
import base64
import json
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import openai
import uvicorn

import unike
from unike.data.datasets.base import open_dataset
from unike.data.queries import Query
from unike.serve import Engine, Settings, create_app
from unike.serve.run import Server, address_of, listen
from unike.store import Store

Request = tuple[Query, int]
"""What is asked, and under which set."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=500, help="with edits, and as many without")
    parser.add_argument("--block", type=int, default=100)
    parser.add_argument("--sets", type=int, default=4)
    parser.add_argument("--edits", type=int, default=2, help="of each set")
    args = parser.parse_args()
    backbone, editor = unike.load_backbone(args.model), unike.make_editor("unike")
    cases = list(islice(open_dataset("pocket2-vqa").cases("dev"), args.sets * args.edits))
    made = editor.edit(backbone, [case.edit for case in cases])
    asked = [(query, row % args.sets) for row, case in enumerate(cases) for query in questions(case)]
    random.Random(0).shuffle(asked)  # so that a batch has many sets
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder) / "store")
        for row in range(len(made)):
            store.add(made[row], set=f"set-{row % args.sets}", author="load")
        app = create_app(Engine(backbone), store, Settings(name="m"), editor=editor)
        with running(app) as url:
            print(json.dumps(vars(args) | measured(url, asked, args)), flush=True)
        store.close()


def questions(case: Any) -> list[Query]:
    """The edited question and its probes."""
    return [case.edit.question, *(probe.query.question for probe in case.probes)]


@contextmanager
def running(app: Any) -> Iterator[str]:
    listening, ready = listen("127.0.0.1", 0), threading.Event()
    server = Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on"), ready.set)
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]))
    thread.start()
    ready.wait()
    try:
        yield address_of(listening)
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def measured(url: str, asked: Sequence[Request], args: argparse.Namespace) -> dict[str, Any]:
    """Blocks with and without edits in turns; which is first changes, too."""
    requests = [asked[number % len(asked)] for number in range(args.requests)]
    taken: dict[bool, list[float]] = {True: [], False: []}
    seconds, cpu, written, errors = {True: 0.0, False: 0.0}, {True: 0.0, False: 0.0}, {True: 0, False: 0}, []
    with (
        openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600) as client,
        ThreadPoolExecutor(args.clients) as pool,
    ):
        for query, set in asked[: args.clients]:  # warms up: stacks are made, weights are read
            ask(client, query, f"m@set-{set}")
        for turn, start in enumerate(range(0, len(requests), args.block)):
            for edited in (True, False) if turn % 2 else (False, True):
                block = requests[start : start + args.block]
                began, busy = time.perf_counter(), time.process_time()
                found = list(pool.map(lambda each, edited=edited: timed(client, each, edited), block))
                seconds[edited] += time.perf_counter() - began
                cpu[edited] += time.process_time() - busy
                answered = [each for each in found if not isinstance(each, str)]
                taken[edited] += [lasted for lasted, _ in answered]
                written[edited] += sum(tokens for _, tokens in answered)
                errors += [each for each in found if isinstance(each, str)]
    ratios = {
        "CPU time, of that without edits": round(cpu[True] / cpu[False], 3),
        "tokens, of those without edits": round(written[True] / max(1, written[False]), 3),
    }
    return report(taken, seconds, errors) | ratios


def timed(client: openai.OpenAI, request: Request, edited: bool) -> tuple[float, int] | str:
    """Seconds and tokens of the answer, or what went wrong."""
    query, set = request
    start = time.perf_counter()
    try:
        tokens = ask(client, query, f"m@set-{set}" if edited else "m")
    except openai.OpenAIError as error:
        return repr(error)
    return time.perf_counter() - start, tokens


def ask(client: openai.OpenAI, query: Query, model: str) -> int:
    """How many tokens the answer has."""
    content: list[Any] = [{"type": "text", "text": query.prompt}]
    if query.image is not None:
        kind = "png" if query.image.suffix == ".png" else query.image.suffix[1:].replace("jpg", "jpeg")
        url = f"data:image/{kind};base64,{base64.b64encode(query.image.read_bytes()).decode()}"
        content.append({"type": "image_url", "image_url": {"url": url}})
    reply = client.chat.completions.create(model=model, messages=[{"role": "user", "content": content}])
    return reply.usage.completion_tokens if reply.usage else 0


def report(taken: dict[bool, list[float]], seconds: dict[bool, float], errors: Sequence[str]) -> dict[str, Any]:
    quantiles = {edited: statistics.quantiles(each, n=20) for edited, each in taken.items()}
    found: dict[str, Any] = {"errors": len(errors), "first errors": list(errors[:3])}
    rate = {edited: len(each) / seconds[edited] for edited, each in taken.items()}
    found["throughput, of that without edits"] = round(rate[True] / rate[False], 3)
    for name, at in (("p50", 9), ("p95", 18)):
        found[f"{name} seconds"] = round(quantiles[True][at], 3)
        found[f"{name}, of that without edits"] = round(quantiles[True][at] / quantiles[False][at], 3)
    return found


if __name__ == "__main__":
    main()
