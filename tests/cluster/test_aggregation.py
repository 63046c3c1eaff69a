"""Answers of several replicas as one."""

from __future__ import annotations

from google.protobuf import text_format

from headrace.cluster.aggregation import merged_index, merged_statistics
from headrace.protocol import headrace_pb2 as pb


def statistics(text: str) -> pb.ModelStatisticsResponse:
    return text_format.Parse(text, pb.ModelStatisticsResponse())


def test_statistics_are_added_and_the_latest_inference_holds() -> None:
    one = statistics("""
        model_stats { name: "m" version: "1" last_inference: 7 inference_count: 5 execution_count: 3
          inference_stats { success { count: 5 ns: 50 } queue { count: 5 ns: 10 } }
          batch_stats { batch_size: 4 compute_infer { count: 1 ns: 9 } }
          memory_usage { type: "GPU" id: 0 byte_size: 10 }
          response_stats { key: "0" value { success { count: 1 ns: 2 } } } }
    """)
    other = statistics("""
        model_stats { name: "m" version: "1" last_inference: 4 inference_count: 2 execution_count: 2
          inference_stats { success { count: 2 ns: 5 } fail { count: 1 ns: 1 } }
          batch_stats { batch_size: 1 compute_infer { count: 2 ns: 3 } }
          batch_stats { batch_size: 4 compute_infer { count: 2 ns: 1 } compute_input { count: 2 ns: 6 } }
          memory_usage { type: "GPU" id: 0 byte_size: 1 }
          memory_usage { type: "GPU" id: 1 byte_size: 2 }
          response_stats { key: "0" value { success { count: 1 ns: 3 } } } }
        model_stats { name: "m" version: "2" inference_count: 1 }
    """)
    assert merged_statistics([one, other]) == statistics("""
        model_stats { name: "m" version: "1" last_inference: 7 inference_count: 7 execution_count: 5
          inference_stats { success { count: 7 ns: 55 } fail { count: 1 ns: 1 } queue { count: 5 ns: 10 } }
          batch_stats { batch_size: 1 compute_infer { count: 2 ns: 3 } }
          batch_stats { batch_size: 4 compute_infer { count: 3 ns: 10 } compute_input { count: 2 ns: 6 } }
          memory_usage { type: "GPU" id: 0 byte_size: 11 }
          memory_usage { type: "GPU" id: 1 byte_size: 2 }
          response_stats { key: "0" value { success { count: 2 ns: 5 } } } }
        model_stats { name: "m" version: "2" inference_count: 1 }
    """)


def index(*entries: tuple[str, str, str, str]) -> pb.RepositoryIndexResponse:
    response = pb.RepositoryIndexResponse()
    for name, version, state, reason in entries:
        response.models.add(name=name, version=version, state=state, reason=reason)
    return response


def told(response: pb.RepositoryIndexResponse) -> list[tuple[str, str, str, str]]:
    return [(entry.name, entry.version, entry.state, entry.reason) for entry in response.models]


def test_an_index_on_which_all_agree_is_that_index() -> None:
    same = (("a", "2", "READY", ""), ("a", "10", "UNAVAILABLE", "unloaded"), ("b", "", "", ""))
    answers = {"r1": index(*same), "r2": index(*same)}
    assert told(merged_index(answers, only_ready=False)) == list(same)
    assert told(merged_index(answers, only_ready=True)) == [same[0]]


def test_a_version_is_as_ready_as_it_is_where_it_is_least_so() -> None:
    answers = {
        "r1": index(("a", "1", "READY", ""), ("b", "1", "READY", ""), ("c", "1", "READY", "")),
        "r2": index(("a", "1", "LOADING", ""), ("b", "", "", ""), ("c", "1", "UNAVAILABLE", "broken")),
        "r3": index(("a", "1", "READY", ""), ("b", "1", "READY", ""), ("c", "1", "LOADING", "")),
    }
    assert told(merged_index(answers, only_ready=False)) == [
        ("a", "1", "LOADING", "READY on r1, r3; LOADING on r2"),
        ("b", "1", "UNAVAILABLE", "READY on r1, r3; not loaded on r2"),
        ("c", "1", "UNAVAILABLE", "READY on r1; UNAVAILABLE on r2: broken; LOADING on r3"),
    ]
    assert told(merged_index(answers, only_ready=True)) == []
