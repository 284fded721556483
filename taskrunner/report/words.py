"""The labels of a report in English and Japanese."""

from __future__ import annotations

from collections.abc import Callable

JAPANESE = {
    "Report": "レポート",
    "results count": "件の結果が有効",
    "of": "中",
    "Verdicts": "判定",
    "Ratios": "比率",
    "Prompt length": "プロンプト長",
    "Concurrency": "並行数",
    "Transfer": "転送コスト",
    "Requests": "リクエスト",
    "Timeline": "タイムライン",
    "All measurements": "全測定値",
    "Starts": "サーバーの起動",
    "Limits": "前提と限界",
    "Alarms": "警告",
    "look closer": "詳しく調べる",
    "Left out": "除外された結果",
    "expected": "予想",
    "differs": "差がある",
    "differs but negligible": "差はあるが無視できる",
    "equivalent": "同等",
    "undecided": "判定できない",
    "not measurable": "測定できない",
    "of these starts": "この起動に限る値",
    "data": "データ",
    "copy as CSV": "CSV としてコピー",
    "filter": "絞り込み",
    "backend": "バックエンド",
    "b / a, 95 % interval": "b / a（95 % 信頼区間）",
    "prompt tokens": "プロンプトのトークン数",
    "concurrency": "並行数",
    "ttft": "TTFT",
    "tpot": "TPOT",
    "e2e_latency": "E2E",
    "tokens/s of one user": "1 ユーザーあたりトークン/秒",
    "tokens/s of one GPU": "1 GPU あたりトークン/秒",
    "TTFT after prefill (ms)": "プリフィル後の TTFT (ms)",
    "pattern": "パターン",
    "start": "起動",
    "block": "ブロック",
    "request": "リクエスト",
    "share of requests": "リクエストの割合",
    "minutes": "分",
    "GPU time and waiting": "GPU 時間と待ち時間",
    "waiting": "待ち",
    "network tool": "ネットワークツール",
    "measured again by": "再測定のコマンド",
    "more blocks are needed": "ブロックの追加が必要",
    "would be found": "検出できる差",
    "matched pairs": "対応するペア",
    "blocks": "ブロック",
    "between starts": "起動間のばらつき",
}
LANGUAGES = {"en": {"ttft": "TTFT", "tpot": "TPOT", "e2e_latency": "E2E"}, "ja": JAPANESE}


def words(language: str) -> Callable[[str], str]:
    """The labels of a language; what it does not have stays English."""
    known = LANGUAGES[language]
    return lambda text: known.get(text, text)
