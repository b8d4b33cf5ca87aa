"""Peak host memory while weights are read onto a mesh that cuts them in eight: `python tests/load_test.py FOLDER`.

As a program it prints json: bytes of the file, and by how much this process's own memory grew at most while reading it.
Pages of the file itself, which the kernel shares and drops as it likes, are not this process's own. The test takes
ViT-B/32's shapes; ViT-L/14's, of three times the size, take a minute.
"""

import json
import os
import subprocess
import sys
import threading
import time

import jax
import numpy as np

from vlmx.models import convert, zoo
from vlmx.models.clip import param_shapes


def own_memory():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def main(folder):
    from vlmx import shard

    mesh = shard.make_mesh({"fsdp": len(jax.devices()), "data": 1})
    jax.block_until_ready(shard.put(mesh, "steps", {"x": np.zeros((1, 1, 8))}))  # the runtime's own share comes before
    before, peak, done = own_memory(), [0], threading.Event()

    def watch():
        while not done.is_set():
            peak[0] = max(peak[0], own_memory())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, params = convert.read(folder, place=lambda path, shape: shard.sharding(mesh, path, shape, shard.MODEL))
    jax.block_until_ready(params)
    done.set()
    watcher.join()
    held = sum(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves(params))
    file = os.path.getsize(os.path.join(folder, "model.safetensors"))
    print(json.dumps({"file": file, "peak": max(peak[0], own_memory()) - before, "a device": held}))


def test_the_host_never_holds_more_than_the_file_and_a_little(tmp_path):
    rng = np.random.default_rng(0)

    def fill(a):
        return np.broadcast_to(rng.standard_normal(a.shape[-1:], np.float32), a.shape)

    config = zoo.MODELS["ViT-B/32"].config
    convert.save_hf(tmp_path, config, jax.tree.map(fill, param_shapes(config)))
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    out = subprocess.run([sys.executable, __file__, str(tmp_path)], env=env, capture_output=True, text=True)
    found = json.loads(out.stdout)
    assert found["peak"] < 1.3 * found["file"], found
    assert found["a device"] < found["file"] / 7, found  # 8 pieces, and the small leaves that every device has


if __name__ == "__main__":
    main(sys.argv[1])
