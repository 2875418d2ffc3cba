"""What somebody without the secret tries on a Prefect server: as a web page, and as another account."""

from __future__ import annotations

ATTACK = """<!doctype html><title>A page</title><script>
async function attack(api, deployment, command) {
  const run = JSON.stringify({job_variables: {command}}), path = `${api}/deployments/${deployment}/create_flow_run`;
  const json = {method: "POST", headers: {"Content-Type": "application/json"}};
  const status = async (url, options) => { try { return (await fetch(url, options)).status; } catch { return "refused"; } };
  const socket = new Promise(done => {
    const events = new WebSocket(api.replace("http", "ws") + "/events/in");
    events.onopen = () => done("open");
    events.onerror = () => done("refused");
  });
  return {
    read: await status(`${api}/deployments/filter`, {...json, body: "{}"}),
    json: await status(path, {...json, body: run}),
    text: await status(path, {method: "POST", mode: "no-cors", body: run}),
    socket: await socket,
  };
}
</script>"""
"""A page; its function `attack` tells what came of each try."""

AS_NOBODY = """
import json, pathlib, sys, urllib.error, urllib.request
services, url, body = sys.argv[1:]
def allowed(read):
    try:
        return read()
    except OSError as error:
        return None
def ask():
    request = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"})
    try:
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).status
    except urllib.error.HTTPError as error:
        return error.code
folder = pathlib.Path(services)
processes = [p for p in pathlib.Path("/proc").iterdir() if p.name.isdigit()]
told = [allowed(lambda: (p / name).read_bytes().decode(errors="replace")) for p in processes for name in ("cmdline", "environ")]
print(json.dumps({
    "listed": allowed(lambda: [p.name for p in folder.iterdir()]),
    "secret": allowed((folder / "prefect-secret").read_text),
    "state": allowed((folder / "services.json").read_text),
    "processes": [text for text in told if text],
    "run": ask(),
}))
"""
"""A program; it prints what it could read and what came of its request."""
