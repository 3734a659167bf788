"""Secure aggregation: CPU time and bytes of an exchange, beside Flower's masks and shares on equal vectors.

python jobs/benchmarks/secure_aggregation.py
python jobs/benchmarks/secure_aggregation.py --clients 16 --values 100000 --repeats 1 --no-flower

One process, no Ray: the state machines themselves, a tenth of the clients dropping out after they have dealt shares.
Times are CPU time, medians over repeats. "client" and "server" are the whole exchange, with the signature of every
message made and checked; "mask" is a client's third stage, "unmask" the server's work after the last answer. "round" is
what an exchange adds on two cores: half of all clients' work and the server's, one after the other. Flower's figures
are calls times the median of a call of flwr.common.secure_aggregation's own functions (`pseudo_rand_gen`,
`create_shares`, `combine_shares`), with as many masks and the same thresholds. flwr pins Ray exactly, so it gets an
environment of its own, made on the first run.
"""

import argparse
import json
import subprocess
import sys
import venv
from pathlib import Path
from statistics import median
from time import process_time

import numpy as np

from fedtalk_ray.privacy.graph import COMPLETE_UP_TO, holders, threshold
from fedtalk_ray.privacy.keys import Roster, SigningKey
from fedtalk_ray.privacy.protocol import STAGES, Limits
from fedtalk_ray.privacy.rehearsal import plan_for
from fedtalk_ray.privacy.secure_client import SecureClient
from fedtalk_ray.privacy.secure_server import SecureServer
from fedtalk_ray.progress import ticker

FLOWER = "flwr>=1.20"

FLOWER_CALLS = """
import json, os, sys
from statistics import median
from time import process_time
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

def timed(call, times=5):
    seconds = []
    for _ in range(times):
        started = process_time()
        call()
        seconds.append(process_time() - started)
    return median(seconds)

answers = []
for holders, needed, values in json.loads(sys.argv[1]):
    shares = create_shares(os.urandom(32), needed, holders)
    answers.append({
        "mask": timed(lambda: pseudo_rand_gen(os.urandom(32), 1 << 32, [(values,)])),
        "split": timed(lambda: create_shares(os.urandom(32), needed, holders)),
        "combine": timed(lambda: combine_shares(shares[:needed])),
    })
print(json.dumps(answers))
"""


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Secure aggregation beside Flower's, CPU time and bytes.")
    parser.add_argument("--clients", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--values", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument(
        "--complete-up-to", type=int, default=COMPLETE_UP_TO, help="sparse graphs above so many clients"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--flower-env", type=Path, default=Path(".venv-flower"))
    parser.add_argument("--no-flower", action="store_true")
    options = parser.parse_args(arguments)
    sparse = options.complete_up_to
    cases = [(clients, values) for clients in options.clients for values in options.values]
    flower = {} if options.no_flower else flower_calls(options.flower_env, cases, sparse)
    print(
        "| clients | values | client, ms | mask, ms | server, ms | unmask, ms | round, s | up, MB a client"
        " | Flower: client | server | round |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    with ticker(len(cases) * options.repeats, "exchanges") as tick:
        for clients, values in cases:
            runs = []
            for _ in range(options.repeats):
                runs.append(exchange(clients, values, sparse))
                tick()
            client, mask, server, unmask, sent = (median(run[place] for run in runs) for place in range(5))
            line = [clients, values, *(f"{1e3 * seconds:.1f}" for seconds in (client, mask, server, unmask))]
            line += [f"{on_two_cores(clients, client, server):.2f}", f"{sent / 1e6:.2f}"]
            line += [*flower_columns(clients, flower.get((clients, values)), sparse)]
            print("| " + " | ".join(map(str, line)) + " |", flush=True)


def on_two_cores(clients: int, client: float, server: float) -> float:
    return clients * client / 2 + server


def exchange(count: int, values: int, complete_up_to: int) -> tuple[float, float, float, float, float]:
    """Seconds of CPU per client, of it to mask, of the server, of it to unmask, and bytes that a client sends.

    The sum is checked.
    """
    rng = np.random.default_rng(0)
    names = [f"c{place:04d}" for place in range(count)]
    vectors = {name: rng.integers(0, 2**32, values, np.uint32) for name in names}
    keys, server_key = {name: SigningKey.generate() for name in names}, SigningKey.generate()
    roster = Roster({name: key.public for name, key in keys.items()}, server_key.public)
    plan, limits = plan_for(tuple(names)), Limits(complete_up_to=complete_up_to)
    server = SecureServer(plan, server_key, roster, limits, values)
    clients = {name: SecureClient(name, keys[name], roster, plan, limits) for name in names}
    dropping, frames = set(names[::10]), dict.fromkeys(names, b"")
    client_time = server_time = 0.0
    mask_times = []
    sent = 0
    for stage in STAGES:
        for name in sorted(frames.keys() - (dropping if stage == "mask" else set())):
            started = process_time()
            side = clients[name]
            match stage:
                case "advertise":
                    answer = side.advertise()
                case "mask":
                    answer = side.mask(frames[name], vectors[name])
                case _:
                    answer = getattr(side, stage)(frames[name])
            spent = process_time() - started
            client_time += spent
            if stage == "mask":
                mask_times.append(spent)
            sent += len(answer)
            started = process_time()
            server.receive(answer)
            server_time += process_time() - started
        started = process_time()
        frames = server.close()
        closing = process_time() - started
        server_time += closing
    expected = np.sum([vectors[name] for name in server.survivors], axis=0, dtype=np.uint32)
    assert len(server.survivors) == count - len(dropping) and np.array_equal(server.total(), expected)
    # The last stage that was closed is the one that unmasks.
    return client_time / count, median(mask_times), server_time, closing, sent / count


def flower_calls(folder: Path, cases: list[tuple[int, int]], sparse: int) -> dict[tuple[int, int], dict[str, float]]:
    """Seconds of a mask, a split and a combination in Flower, by (clients, values)."""
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"making {folder} with {FLOWER}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", FLOWER], check=True)
    asked = [(holders(clients, sparse) + 1, threshold(clients, sparse), values) for clients, values in cases]
    done = subprocess.run([python, "-c", FLOWER_CALLS, json.dumps(asked)], check=True, capture_output=True, text=True)
    return dict(zip(cases, json.loads(done.stdout.splitlines()[-1]), strict=True))


def flower_columns(clients: int, call: dict[str, float] | None, sparse: int) -> list[str]:
    """A client makes a mask with each partner and one of its own, and splits two secrets. The server combines one
    secret for everybody, and takes off a mask for each survivor and for each pair of a dropout with a survivor."""
    if call is None:
        return ["", "", ""]
    dropped = -(-clients // 10)
    # Those that it drew and those that drew it.
    drawn = holders(clients, sparse)
    partners = 2 * drawn - drawn**2 / (clients - 1)
    client = (partners + 1) * call["mask"] + 2 * call["split"]
    pairs = dropped * partners * (clients - dropped) / (clients - 1)
    server = clients * call["combine"] + (clients - dropped + pairs) * call["mask"]
    return [f"{1e3 * client:.0f}", f"{1e3 * server:.0f}", f"{on_two_cores(clients, client, server):.1f}"]


if __name__ == "__main__":
    main(sys.argv[1:])
