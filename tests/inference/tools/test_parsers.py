"""The output of real tools, whole, failed, and cut off at every line. The figures of nccl_tests_* are those of stub libraries."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskrunner.inference.tools.perftest import perftest
from taskrunner.inference.tools.reading import NotAResult
from taskrunner.inference.tools.registry import PARSERS, parser
from tests.helpers import Process

SAMPLES = Path(__file__).parent / "samples"
TOOLS = {
    "fi_info": "fi_info",
    "fi_pingpong": "fi_pingpong",
    "fi_rdm_bw": "fi_rdm_bw",
    "fi_rdm_pingpong": "fi_rdm_pingpong",
    "fi_rma_bw": "fi_rma_bw",
    "fi_rma_pingpong": "fi_rma_pingpong",
    "ib_": "perftest",
    "ibv_": "ibv_devinfo",
    "iperf3": "iperf3",
    "kvbench": "kvbench",
    "nccl_log": "nccl-log",
    "nccl_": "nccl-tests",
    "nixlbench": "nixlbench",
    "nvidia_smi": "nvidia-smi",
    "ucx": "ucx_perftest",
}


def tool_of(name: str) -> str:
    return next(tool for start, tool in TOOLS.items() if name.startswith(start))


def parsed(name: str, text: str | None = None) -> dict[str, Any]:
    return parser(tool_of(name))((SAMPLES / name).read_text(errors="replace") if text is None else text)


def results() -> Iterator[str]:
    for path in sorted(SAMPLES.iterdir()):
        try:
            parsed(path.name)
        except NotAResult:
            continue
        yield path.name


SUMMARIES: dict[str, dict[str, float]] = {
    "fi_pingpong_tcp_rdm_1m_client.txt": {"latency_us": 2193.0, "bandwidth_gbps": 3.8252},
    "fi_pingpong_udp_client.txt": {"latency_us": 1326.65, "bandwidth_gbps": 0.0061750},
    "fi_rdm_bw_26_16m_client.txt": {"bandwidth_gbps": 3.0113, "transfer_time_ms": 44.5708},
    "fi_rdm_bw_mach_client.txt": {"bandwidth_gbps": 1.82206, "transfer_time_ms": 0.004496},
    "fi_rdm_pingpong_26_64k_client.txt": {"latency_us": 648.28, "bandwidth_gbps": 0.808737},
    "fi_rma_bw_26_read_client.txt": {"bandwidth_gbps": 2.790937},
    "iperf3_312_p8_omit_json.json": {"bandwidth_gbps": 4.508133},
    "iperf3_39_bidir_json.json": {"bandwidth_gbps": 5.285302},
    "iperf3_321_bidir_json.json": {"bandwidth_gbps": 3.023573},
    "ucx113_tag_lat_64_client.txt": {"latency_us": 297.089},
    "ucx113_tag_lat_4096_final_client.txt": {"latency_us": 444.483, "transfer_time_ms": 0.444483},
    "ucx113_csv_put_1m_client.txt": {"bandwidth_gbps": 0.684594},
    "ucx_tag_bw_1m_client.txt": {"bandwidth_gbps": 41.5372, "transfer_time_ms": 0.201954},
    "nixlbench14_ucx_write_initiator.txt": {
        "latency_us": 4617.3,
        "bandwidth_gbps": 2.153792,
        "transfer_time_ms": 15.5792,
    },
    "nccl_all_reduce_h100x2.txt": {"latency_us": 19.79, "max_busbw_gbytes_s": 298.1},
    "nccl_all_gather_h100x2.txt": {"max_busbw_gbytes_s": 253.73},
    # Its first two sizes are rounded down to 0 bytes.
    "nccl_all_gather_from_8_bytes_h100x2.txt": {"latency_us": 17.79, "max_busbw_gbytes_s": 294.6},
    "nccl_tests_213_g4.txt": {"latency_us": 204.9, "max_busbw_gbytes_s": 14.01},
    "nccl_tests_219_per_iteration.txt": {"latency_us": 889.06, "max_busbw_gbytes_s": 10.38},
    "nccl_tests_219_timestamps.txt": {"max_busbw_gbytes_s": 10.46},
    "nccl_tests_219_mpi_tagged.txt": {"latency_us": 99.62, "max_busbw_gbytes_s": 14.28},
    "nccl_tests_219_one_gpu.txt": {"latency_us": 193.68},
}


@pytest.mark.parametrize("name", SUMMARIES)
def test_the_figures_are_those_of_the_tool_in_one_unit(name: str) -> None:
    summary = parsed(name)["summary"]
    wanted = SUMMARIES[name]
    assert {key: summary.get(key) for key in wanted} == pytest.approx(wanted, rel=1e-4)
    if "_bw" in name:
        assert "latency_us" not in summary, "the time of one of many messages is no latency"


REFUSED = {
    "fi_info_efa_missing_26.err.txt": "No data available",
    "fi_pingpong_absent.err.txt": "Connection refused",
    "fi_pingpong_suffix.err.txt": 'Error parsing "64K"',
    "fi_rdm_bw_26_suffix_client.txt": "-S 64K was asked for, but 64 bytes were sent",
    "fi_rdm_bw_26_size_mismatch_server.err.txt": "Truncation error",
    "iperf3_312_absent_json.json": "unable to connect to server",
    "iperf3_39_absent_json.json": "there was no server, or it was busy",
    "iperf3_312_busy_json.json": "the server is busy",
    "iperf3_text.txt": "not JSON",
    "ib_write_bw_srd_refused.err.txt": "SRD connection only possible in SEND/READ verbs",
    "ib_write_bw_no_device.err.txt": "Did not detect devices",
    "ibv_devinfo_none.err.txt": "Failed to get IB devices list",
    "ucx113_cuda_unsupported.txt": 'unsupported memory type: "cuda"',
    "ucx113_srd_unavailable.txt": "no usable transports/devices",
    "nixlbench14_ucx_write_target.txt": "which the initiator prints",
    "nixlbench14_bad_backend.err.txt": "Unsupported NIXLBench backend: Libfabric",
    "kvbench_no_model_config.txt": "--model and --model_config are required",
    "kvbench_kvcache.txt": "measures nothing",
    "nccl_tests_219_wrong.txt": "4 checks found wrong values",
    "nccl_tests_213_wrong.txt": "wrong values",
    "nccl_tests_219_min_bw.txt": "Test failure",
    "nccl_tests_219_no_driver.txt": "CUDA driver version is insufficient",
    "nccl_tests_219_bad_option.err.txt": "unrecognized option",
    "nccl_all_reduce_too_many_gpus_h100x2.txt": "8 requested but only 2 were found",
    "nccl_log_net_aws.txt": "no channel was set up",
    "nvidia_smi_query_bad_field.txt": 'Field "nosuch" is not a valid field',
    "nvidia_smi_bad_index.txt": "No devices were found",
    "nvidia_smi_pmon.txt": "# gpu",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_result_is_refused_in_the_words_of_the_tool(name: str) -> None:
    with pytest.raises(NotAResult) as refused:
        parsed(name)
    assert REFUSED[name] in str(refused.value)


@pytest.mark.parametrize("name", list(results()))
def test_a_text_that_is_cut_off_yields_no_wrong_figure(name: str) -> None:
    text = (SAMPLES / name).read_text()
    whole = parsed(name)
    lines = text.splitlines(keepends=True)
    for count in range(len(lines)):
        for part in ("".join(lines[:count]), "".join(lines[:count]) + lines[count][: len(lines[count]) // 2]):
            try:
                record = parsed(name, part)
            except NotAResult:
                continue
            assert record["summary"] in ({}, whole["summary"])
            assert record["rows"] == whole["rows"][: len(record["rows"])]


@pytest.mark.parametrize("tool", PARSERS)
@pytest.mark.parametrize(
    "text", ["", "\n", "x\n", "{}\n", "[]\n", "---\n", "#\n", "\t\n", "0 0 0\n", '{"end": {}}', "\0\n"]
)
def test_whatever_it_is_given_is_a_record_or_is_refused(tool: str, text: str) -> None:
    with pytest.raises(NotAResult):
        parser(tool)(text)


def test_a_lost_transfer_is_no_result() -> None:
    text = (SAMPLES / "fi_pingpong_udp_client.txt").read_text().replace("=100", "99")
    with pytest.raises(NotAResult, match="only 99 of 100 transfers came back"):
        parsed("fi_pingpong_udp_client.txt", text)


def test_both_directions_and_the_retransmits_of_iperf3() -> None:
    record = parsed("iperf3_312_bidir_json.json")
    document = json.loads((SAMPLES / "iperf3_312_bidir_json.json").read_text())["end"]
    assert record["reverse_bandwidth_gbps"] * 1e9 == document["sum_received_bidir_reverse"]["bits_per_second"]
    assert record["retransmits"] == document["sum_sent"]["retransmits"]
    assert parsed("iperf3_39_bidir_json.json")["reverse_bandwidth_gbps"] is None
    short = (SAMPLES / "iperf3_P1.json").read_text()
    broken = json.loads(short)
    broken["start"]["test_start"]["duration"] *= 2
    with pytest.raises(NotAResult, match="were measured"):
        parsed("iperf3_P1.json", json.dumps(broken))


def test_devices_are_counted_by_domain_not_by_block() -> None:
    record = parsed("fi_info_tcp.txt")
    assert record["devices"] == {"tcp;ofi_rxm": ["eth0", "lo"], "tcp": ["eth0", "lo"]}
    assert record["providers"]["tcp"] == "1.17"
    efa = "".join(
        f"provider: efa\n    fabric: efa\n    domain: rdmap{n}s6-{kind}\n    version: 206.0\n    type: FI_EP_RDM\n"
        "    protocol: FI_PROTO_EFA\n"
        for n in (0, 1)
        for kind in ("rdm", "dgrm")
    )
    assert parser("fi_info")(efa)["devices"] == {"efa": ["rdmap0s6", "rdmap1s6"]}


def test_only_channels_prove_the_fabric() -> None:
    assert parsed("nccl_log_p2p.txt")["fabric"] == {"proven": "local"}
    assert parsed("nccl_log_p2p.txt")["network_named"] == "Socket"
    assert parsed("nccl_log_socket.txt")["fabric"] == {"proven": "tcp"}
    efa = "h:1:1 [0] NCCL INFO Channel 00/0 : 0[0] -> 4[0] [send] via NET/{}/0/GDRDMA\n"
    for name in ("Libfabric", "AWS Libfabric"):
        record = parser("nccl-log")(efa.format(name))
        assert (record["fabric"], record["gpudirect_channels"]) == ({"proven": "efa"}, 1)


def test_what_was_not_checked_is_not_right() -> None:
    assert {row["out_of_place"]["wrong"] for row in parsed("nccl_tests_219_c0.txt")["rows"]} == {None}
    assert {row["in_place"]["wrong"] for row in parsed("nccl_tests_219_alltoall.txt")["rows"]} == {None}
    assert {row["out_of_place"]["wrong"] for row in parsed("nccl_tests_219_g4.txt")["rows"]} == {0}


def test_gpus_by_csv_and_by_xml_are_the_same() -> None:
    csv, xml = (parsed(f"nvidia_smi_{name}")["gpus"] for name in ("query_gpu_h100x2.csv", "q_h100x2.xml"))
    assert (
        [gpu["memory_total_mib"] for gpu in csv] == [gpu["memory_total_mib"] for gpu in xml] == [81559.0] * 2
    )
    assert [gpu["pci_bus_id"] for gpu in csv] == [gpu["pci_bus_id"] for gpu in xml]
    assert parsed("nvidia_smi_query_csv.txt")["gpus"][1]["power_draw_w"] == 104.2
    assert parsed("nvidia_smi_dmon_h100x2.txt")["gpus"]["0"]["pwr"] == {"mean": 76.0, "max": 76.0}
    assert parsed("nvidia_smi_topo_h100x2.txt")["links"]["GPU0"] == {"GPU0": "X", "GPU1": "NV18"}


def test_nics_are_named_by_their_legend() -> None:
    text = "\tGPU0\tNIC0\tCPU Affinity\nGPU0\t X \tPIX\t0-3\nNIC0\tPIX\t X \t\n\nLegend:\n\n  X    = Self\n\nNIC Legend:\n\n  NIC0: rdmap49s0\n"
    record = parser("nvidia-smi")(text)
    assert (record["links"]["GPU0"]["NIC0"], record["nics"]) == ("PIX", {"NIC0": "rdmap49s0"})


@pytest.mark.parametrize(("unit", "gbps"), [("MB/sec", 1000 * 2**20 * 8 / 1e9), ("Gb/sec", 1000.0)])
def test_the_header_of_perftest_says_in_which_unit(unit: str, gbps: float) -> None:
    text = (
        " Connection type : SRD\n"
        f" #bytes     #iterations    BW peak[{unit}]    BW average[{unit}]   MsgRate[Mpps]\n"
        " 65536      1000             0.00               1000.00            0.016\n"
    )
    record = perftest(text)
    assert record["summary"]["bandwidth_gbps"] == pytest.approx(gbps)
    assert record["connection_type"] == "SRD"


def test_parse_prints_a_table_or_json_and_says_why_not(cli: Callable[..., Process]) -> None:
    path = SAMPLES / "ucx_tag_lat_8_client.txt"
    assert "latency_us: 5.02" in cli("parse", "ucx_perftest", path).stdout
    assert json.loads(cli("parse", "ucx_perftest", path, "--json").stdout)["rows"][0]["latency_us"] == 5.02
    table = cli("parse", "nccl-tests", SAMPLES / "nccl_all_reduce_h100x2.txt").stdout.splitlines()
    assert [line.split()[1:] for line in table if line.split()[0] == "268435456"] == [
        ["901.15", "297.88", "900.49", "298.1"]
    ]
    done = cli("parse", "ucx_perftest", SAMPLES / "ucx113_absent.txt")
    assert (done.returncode, done.stderr) == (
        1,
        f"{SAMPLES}/ucx113_absent.txt: no result of ucx_perftest: client failed. connect() failed: Connection refused\n",
    )
    assert cli("parse", "ucx_perftes", path).returncode == 2
    assert cli("parse", "ucx_perftest", "nowhere").returncode == 2
