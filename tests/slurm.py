"""A real Slurm of one node, started and stopped as root on Debian; its package is installed."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time

CONF = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP
"""


def why_not():
  """Why there can be no Slurm here, or ""."""
  if os.geteuid():
    return "starts Slurm's daemons, which root alone may"
  if not shutil.which("slurmctld") and not shutil.which("apt-get"):
    return "Slurm is not installed, and this is no Debian to install it on"
  return ""


@contextlib.contextmanager
def cluster(folder):
  """The environment in which `srun` finds the cluster."""
  if not all(map(shutil.which, ("slurmctld", "slurmd", "srun", "munged"))):
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "-y", "slurm-wlm", "munge"]):
      subprocess.run(["apt-get", "-qq", *words], env=quiet, check=True, stdout=subprocess.DEVNULL)
  for name in ("state", "spool"):
    (folder / name).mkdir()
  folder.chmod(0o755)
  key = folder / "munge.key"
  key.write_bytes(os.urandom(128))
  key.chmod(0o400)
  host, cpus = socket.gethostname().partition(".")[0], os.cpu_count()
  conf = folder / "slurm.conf"
  conf.write_text(CONF.format(host=host, folder=folder, cpus=max(cpus, 2), ports=_free_ports(2)))
  munged = ["munged", "--force", "--foreground", f"--key-file={key}"]
  munged += [f"--{x}={folder}/munge.{x.split('-')[0]}" for x in ("socket", "pid-file", "log-file")]
  munged += [f"--seed-file={folder}/munge.seed"]
  environment = {**os.environ, "SLURM_CONF": str(conf)}
  with contextlib.ExitStack() as stack:
    for words in (munged, ["slurmctld", "-D"], ["slurmd", "-D"]):
      daemon = subprocess.Popen(
        words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
      )
      stack.callback(daemon.wait, 30)
      stack.callback(daemon.send_signal, signal.SIGTERM)
      time.sleep(1)
    _wait_until_idle(environment, folder)
    yield environment


def _wait_until_idle(environment, folder):
  for _ in range(60):
    said = subprocess.run(
      ["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True
    )
    if "idle" in said.stdout:
      return
    time.sleep(0.5)
  logs = "\n".join(p.read_text()[-2000:] for p in folder.glob("*.log"))
  raise RuntimeError(f"The node did not become idle: {said}\n{logs}")


def _free_ports(count):
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
    for one in sockets:
      one.bind(("", 0))
    return [one.getsockname()[1] for one in sockets]
