import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from search.history import Evaluation, write_history
from search.report.live import LiveReport, serve
from supernet.space import Arch

pytest.importorskip("plotly", reason="there is no report: plotly is not installed")


def test_pages_are_made_anew_when_something_changed(tmp_path):
    report = LiveReport([tmp_path])
    assert "Nothing to show yet" in report.page()
    evaluations = [Evaluation(Arch({"width": w}), {"accuracy": 0.1 * w}, {"macs": 1.0 * w}, 0) for w in range(1, 4)]
    versions = [report.version()]
    for count in (1, 3):
        write_history(tmp_path / "search.jsonl", {}, evaluations[:count])
        versions.append(report.version())
        page = report.page()
        assert f'"evaluated":{count}' in page
        assert report.page() is page
    assert len(set(versions)) == 3


def test_a_training_is_followed_before_anything_is_searched(tmp_path):
    config = '{"job": {"train": {"method": "sandwich"}}, "classes": ["a"], "images": {"holdout": 50}}'
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "losses": [3.0, 2.0, 1.0]}\n')
    page = LiveReport([tmp_path]).page()
    assert '"losses":{"largest":[[1,3.0]]' in page
    (tmp_path / "metrics.jsonl").write_text("[]\n")
    assert "metrics.jsonl, line 1, is damaged" in LiveReport([tmp_path]).page()


def test_the_server_answers_this_machine_alone_and_only_reads(tmp_path):
    write_history(tmp_path / "search.jsonl", {}, [Evaluation(Arch({"w": 1}), {"accuracy": 0.5}, {"macs": 1.0}, 0)])
    with serve(LiveReport([tmp_path])) as server, ThreadPoolExecutor(1) as pool:
        pool.submit(server.serve_forever, 0.05)
        try:
            host, port = server.server_address
            assert host == "127.0.0.1"

            def answer(path, **more):
                request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", **more)
                try:
                    with urllib.request.urlopen(request) as found:
                        return found.status
                except urllib.error.HTTPError as error:
                    with error:
                        return error.code

            paths = ("/", "/version", "/search.jsonl", "/../etc/passwd")
            assert [answer(path) for path in paths] == [200, 200, 404, 404]
            assert answer("/", headers={"Host": "elsewhere.example:80"}) == 403
            assert answer("/", data=b"x") == 501  # POST
        finally:
            server.shutdown()
    assert [path.name for path in tmp_path.iterdir()] == ["search.jsonl"]
