"""How people ask for a tool: request templates in English and Japanese, and the values that fill them.

For tools of well-known servers (git, time, fetch, sqlite). Any other tool gets a request made from its schema
(synthesize.py). The rule this protects: a request gives every value that its call needs, in a form that determines it.
In every list of templates the last one is kept for the held-out side, and every fourth value of a pool too: held-out
requests use words *and* values that training never shows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from llm_tuner.data.paraphrases import PARAPHRASES, Paraphrases
from llm_tuner.types import Json, Side

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """A value and how it is said in each language."""

    value: Json
    en: str
    ja: str


Sampler = Callable[[random.Random, Side], Sample]


def side_of(pool: Sequence[T], side: Side) -> list[T]:
    """The part of a pool that this side may use: every fourth item is held out, the rest is for training."""
    return [item for i, item in enumerate(pool) if (i % 4 == 3) == (side == "held-out")]


def one_of(*texts: str) -> Sampler:
    """Values that are said as they are."""

    def sample(rng: random.Random, side: Side) -> Sample:
        text = rng.choice(side_of(texts, side))
        return Sample(text, text, text)

    return sample


def named(*triples: tuple[Json, str, str]) -> Sampler:
    """Values with a name in English and in Japanese."""

    def sample(rng: random.Random, side: Side) -> Sample:
        return Sample(*rng.choice(side_of(triples, side)))

    return sample


def fixed(*triples: tuple[Json, str, str]) -> Sampler:
    """A closed set (an enum): both sides use all of it."""
    return lambda rng, side: Sample(*rng.choice(triples))


def number(low: int, high: int) -> Sampler:
    def sample(rng: random.Random, side: Side) -> Sample:
        value = rng.choice(side_of(range(low, high + 1), side))
        return Sample(value, str(value), str(value))

    return sample


def built(make: Callable[[random.Random, Side], str]) -> Sampler:
    def sample(rng: random.Random, side: Side) -> Sample:
        text = make(rng, side)
        return Sample(text, text, text)

    return sample


@dataclass(frozen=True)
class Wording:
    """One way to use a tool: the arguments that the request gives, and templates that name them as `{argument}`. The
    last template of a language is held out; `more` (English, Japanese) is for training only."""

    values: Mapping[str, Sampler]
    en: Sequence[str]
    ja: Sequence[str]
    constants: Mapping[str, Json] = field(default_factory=dict)
    more: Paraphrases = ((), ())

    def templates(self, language: str, side: Side) -> list[str]:
        every, more = (self.en, self.more[0]) if language == "en" else (self.ja, self.more[1])
        return list(every[-1:]) if side == "held-out" else [*every[:-1], *more]


REPOSITORIES = (
    "blog", "shop", "api", "docs", "mobile", "infra", "webapp", "billing", "search", "parser", "crawler", "notes",
)  # fmt: skip
BRANCHES = (
    "main", "dev", "feature/login", "feature/cart", "release/1.2", "staging", "hotfix/typo", "release/2.0",
    "hotfix/crash", "experiment", "refactor/db", "ui-refresh",
)  # fmt: skip
FILES = (
    "README.md", "src/app.py", "docs/guide.md", "config.yaml", "tests/test_app.py", "notes.txt", "CHANGELOG.md",
    "Makefile",
)  # fmt: skip
TABLES = {
    "customers": ("name", "email", "city"),
    "orders": ("customer_id", "total", "status"),
    "products": ("name", "price", "stock"),
    "suppliers": ("name", "country", "rating"),
    "invoices": ("order_id", "amount", "paid"),
    "employees": ("name", "salary", "city"),
    "shipments": ("order_id", "carrier", "status"),
    "reviews": ("product_id", "stars", "title"),
}
NUMERIC = {
    "total",
    "price",
    "stock",
    "rating",
    "amount",
    "paid",
    "salary",
    "stars",
    "customer_id",
    "order_id",
    "product_id",
}
ZONES = (
    ("Asia/Tokyo", "Tokyo", "東京"), ("Europe/London", "London", "ロンドン"), ("America/New_York", "New York", "ニューヨーク"),
    ("Europe/Paris", "Paris", "パリ"), ("Asia/Singapore", "Singapore", "シンガポール"), ("Europe/Berlin", "Berlin", "ベルリン"),
    ("Australia/Sydney", "Sydney", "シドニー"), ("Asia/Seoul", "Seoul", "ソウル"), ("Asia/Dubai", "Dubai", "ドバイ"),
    ("America/Los_Angeles", "Los Angeles", "ロサンゼルス"), ("America/Chicago", "Chicago", "シカゴ"),
    ("Europe/Madrid", "Madrid", "マドリード"), ("Asia/Shanghai", "Shanghai", "上海"), ("Europe/Rome", "Rome", "ローマ"),
    ("America/Sao_Paulo", "Sao Paulo", "サンパウロ"), ("Asia/Bangkok", "Bangkok", "バンコク"),
    ("Africa/Cairo", "Cairo", "カイロ"), ("Asia/Kolkata", "Kolkata", "コルカタ"), ("America/Toronto", "Toronto", "トロント"),
    ("Europe/Amsterdam", "Amsterdam", "アムステルダム"), ("Asia/Hong_Kong", "Hong Kong", "香港"),
    ("Europe/Istanbul", "Istanbul", "イスタンブール"), ("America/Mexico_City", "Mexico City", "メキシコシティ"),
    ("Pacific/Auckland", "Auckland", "オークランド"),
    ("Europe/Vienna", "Vienna", "ウィーン"), ("Asia/Jakarta", "Jakarta", "ジャカルタ"), ("Africa/Lagos", "Lagos", "ラゴス"),
    ("America/Denver", "Denver", "デンバー"), ("Europe/Stockholm", "Stockholm", "ストックホルム"),
    ("Australia/Melbourne", "Melbourne", "メルボルン"), ("America/Vancouver", "Vancouver", "バンクーバー"),
    ("Europe/Athens", "Athens", "アテネ"), ("Asia/Manila", "Manila", "マニラ"), ("Africa/Nairobi", "Nairobi", "ナイロビ"),
    ("America/Bogota", "Bogota", "ボゴタ"), ("Europe/Warsaw", "Warsaw", "ワルシャワ"), ("Asia/Taipei", "Taipei", "台北"),
    ("Europe/Lisbon", "Lisbon", "リスボン"), ("America/Lima", "Lima", "リマ"), ("Asia/Karachi", "Karachi", "カラチ"),
    ("Europe/Helsinki", "Helsinki", "ヘルシンキ"), ("Australia/Perth", "Perth", "パース"),
    ("Africa/Johannesburg", "Johannesburg", "ヨハネスブルグ"), ("America/Halifax", "Halifax", "ハリファックス"),
    ("Europe/Dublin", "Dublin", "ダブリン"), ("Asia/Tehran", "Tehran", "テヘラン"), ("Pacific/Honolulu", "Honolulu", "ホノルル"),
    ("Europe/Oslo", "Oslo", "オスロ"),
)  # fmt: skip
PAGES = (
    "news/1.html", "news/2.html", "docs/install.html", "docs/api.html", "blog/hello.html", "blog/release.html",
    "about.html", "pricing.html", "faq.html", "news/3.html", "docs/errors.html", "contact.html",
)  # fmt: skip
_VERBS = ("Fix", "Add", "Update", "Remove", "Refactor", "Document", "Rename", "Speed up")
_OBJECTS = (
    "login form", "config loader", "date parser", "price rounding", "search index", "retry logic", "unit tests",
    "error page", "image cache", "user menu", "CSV export", "API client",
)  # fmt: skip
_JA_MESSAGES = ("設定を修正", "ログイン画面を追加", "テストを更新", "不要なコードを削除", "説明を追記", "検索を高速化",
                "キャッシュを導入", "誤字を修正")  # fmt: skip
_INSIGHTS = (
    "Sales rise on weekends", "Returns fell by 5 percent", "Most orders come from Osaka", "Stock of pens is low",
    "Email campaigns bring repeat buyers", "Shipping is slow in winter", "Reviews mention packaging often",
    "Large orders are paid late", "夏は注文が増える", "大阪の顧客が最も多い", "在庫切れは月曜に多い", "平均単価が上がっている",
)  # fmt: skip
_NEW_TABLES = ("coupons", "returns", "visits", "wishlists", "stores", "payments", "sessions", "alerts")
_NEW_COLUMNS = (
    "id INTEGER, code TEXT", "id INTEGER, reason TEXT, day TEXT", "id INTEGER, page TEXT, seconds INTEGER",
    "id INTEGER PRIMARY KEY, name TEXT", "id INTEGER, city TEXT", "id INTEGER, amount REAL", "user_id INTEGER, token TEXT",
    "id INTEGER, level TEXT, text TEXT",
)  # fmt: skip


def _message(rng: random.Random, side: Side) -> str:
    if rng.random() < 0.25:
        return rng.choice(side_of(_JA_MESSAGES, side))
    return f"{rng.choice(_VERBS)} {rng.choice(side_of(_OBJECTS, side))}"


def _table(rng: random.Random, side: Side) -> str:
    return rng.choice(side_of(tuple(TABLES), side))


def _literal(rng: random.Random, column: str) -> str:
    return (
        str(rng.randrange(1, 5000)) if column in NUMERIC else f"'{rng.choice(('open', 'Osaka', 'Sato', 'pen', 'DHL'))}'"
    )


def _select(rng: random.Random, side: Side) -> str:
    table = _table(rng, side)
    column, other = rng.sample(TABLES[table], 2)
    return rng.choice(
        (
            f"SELECT {column} FROM {table} WHERE id = {rng.randrange(1, 200)}",
            f"SELECT * FROM {table} ORDER BY {column} LIMIT {rng.randrange(2, 30)}",
            f"SELECT COUNT(*) FROM {table}",
            f"SELECT {column}, {other} FROM {table}",
            f"SELECT {column} FROM {table} WHERE {other} = {_literal(rng, other)}",
        )
    )


def _change(rng: random.Random, side: Side) -> str:
    table = _table(rng, side)
    column, other = rng.sample(TABLES[table], 2)
    return rng.choice(
        (
            f"UPDATE {table} SET {column} = {_literal(rng, column)} WHERE id = {rng.randrange(1, 200)}",
            f"DELETE FROM {table} WHERE id = {rng.randrange(1, 200)}",
            f"INSERT INTO {table} ({column}, {other}) VALUES ({_literal(rng, column)}, {_literal(rng, other)})",
        )
    )


def _create(rng: random.Random, side: Side) -> str:
    return f"CREATE TABLE {rng.choice(side_of(_NEW_TABLES, side))} ({rng.choice(_NEW_COLUMNS)})"


def _clock(rng: random.Random, side: Side) -> str:
    return f"{rng.randrange(24):02d}:{rng.choice(side_of(range(0, 60, 5), side)):02d}"


repo = one_of(*(f"repos/{name}" for name in REPOSITORIES))
branch = one_of(*BRANCHES)
message = built(_message)
zone = named(*ZONES)
zone_by_name = one_of(*(z[0] for z in ZONES))
page = one_of(*(f"{{base}}/{path}" for path in PAGES))


def _one_file(rng: random.Random, side: Side) -> Sample:
    name = rng.choice(side_of(FILES, side))
    return Sample([name], name, name)


def _two_files(rng: random.Random, side: Side) -> Sample:
    first, second = rng.sample(side_of(FILES, side), 2)
    return Sample([first, second], f"{first} and {second}", f"{first} と {second}")


_WORDINGS: Mapping[str, Sequence[Wording]] = {
    "git_status": (
        Wording(
            {"repo_path": repo},
            ("Show the git status of {repo_path}.", "What is the state of the working tree in {repo_path}?",
             "Are there any modified or untracked files in {repo_path}?", "Git status for {repo_path}, please."),
            ("{repo_path} の git status を見せて。", "{repo_path} の作業ツリーの状態を教えてください。",
             "{repo_path} に変更されたファイルや未追跡のファイルはありますか？", "リポジトリ {repo_path} の状態を確認して。"),
        ),
    ),
    "git_diff_unstaged": (
        Wording(
            {"repo_path": repo},
            ("Show the unstaged changes in {repo_path}.", "Which edits in {repo_path} are not staged yet? Show the diff.",
             "Give me the diff of what is not staged in {repo_path}.", "In {repo_path}, diff the changes I have not staged."),
            ("{repo_path} のステージされていない変更を見せて。", "{repo_path} でまだステージしていない差分を表示してください。",
             "{repo_path} の未ステージの diff をください。", "{repo_path} でまだ add していない変更の差分を見たい。"),
        ),
        Wording(
            {"repo_path": repo, "context_lines": number(1, 12)},
            ("Show the unstaged diff of {repo_path} with {context_lines} context lines.",
             "Unstaged changes in {repo_path}, {context_lines} lines of context please.",
             "I want the not yet staged diff of {repo_path} using {context_lines} lines of context."),
            ("{repo_path} の未ステージの差分を前後 {context_lines} 行つきで見せて。",
             "コンテキスト {context_lines} 行で {repo_path} のステージ前の変更を表示して。",
             "{repo_path} のステージしていない変更を、文脈 {context_lines} 行で出してください。"),
        ),
    ),
    "git_diff_staged": (
        Wording(
            {"repo_path": repo},
            ("Show what is staged for commit in {repo_path}.", "Diff of the staged changes in {repo_path}, please.",
             "Which changes are already staged in {repo_path}?", "Let me review the staged diff of {repo_path}."),
            ("{repo_path} でステージ済みの変更を見せて。", "{repo_path} のコミット予定の差分を表示してください。",
             "{repo_path} ではどの変更がもうステージされていますか？", "{repo_path} のステージ済み diff を確認したい。"),
        ),
    ),
    "git_diff": (
        Wording(
            {"repo_path": repo, "target": branch},
            ("Compare {repo_path} with the branch {target}.", "Show the differences between {repo_path} and {target}.",
             "Diff {repo_path} against {target}.", "How does {repo_path} differ from {target}?"),
            ("{repo_path} をブランチ {target} と比べて。", "{repo_path} と {target} の差分を見せてください。",
             "{repo_path} を {target} に対して diff して。", "{repo_path} は {target} とどう違いますか？"),
        ),
    ),
    "git_commit": (
        Wording(
            {"repo_path": repo, "message": message},
            ('Commit the staged changes in {repo_path} with the message "{message}".',
             'Record a commit in {repo_path}: "{message}".', 'In {repo_path}, git commit -m "{message}".',
             'Please commit in {repo_path}, message "{message}".'),
            ("{repo_path} で「{message}」というメッセージでコミットして。",
             "{repo_path} の変更をコミットしてください。メッセージは「{message}」です。",
             "{repo_path} にコミットを記録して: 「{message}」", "コミットメッセージ「{message}」で {repo_path} をコミット。"),
        ),
    ),
    "git_add": (
        Wording(
            {"repo_path": repo, "files": _one_file},
            ("Stage {files} in {repo_path}.", "Add the file {files} to the index of {repo_path}.",
             "git add {files} in {repo_path}.", "Put {files} of {repo_path} into the staging area."),
            ("{repo_path} の {files} をステージして。", "{repo_path} で {files} を git add してください。",
             "{files} を {repo_path} のインデックスに追加して。", "{repo_path} にある {files} をステージングエリアに入れて。"),
        ),
        Wording(
            {"repo_path": repo, "files": _two_files},
            ("Stage {files} in {repo_path}.", "Add both {files} to the index of {repo_path}.",
             "In {repo_path}, put {files} into the staging area."),
            ("{repo_path} の {files} をステージして。", "{repo_path} で {files} を両方 add して。",
             "{repo_path} にある {files} をステージングエリアに入れて。"),
        ),
    ),
    "git_reset": (
        Wording(
            {"repo_path": repo},
            ("Unstage everything in {repo_path}.", "Reset the index of {repo_path}.",
             "Take all staged changes of {repo_path} out of the staging area.", "Undo every git add in {repo_path}."),
            ("{repo_path} のステージをすべて取り消して。", "{repo_path} のインデックスをリセットしてください。",
             "{repo_path} のステージ済みの変更を全部外して。", "{repo_path} で行った git add を全部元に戻して。"),
        ),
    ),
    "git_log": (
        Wording(
            {"repo_path": repo, "max_count": number(1, 20)},
            ("Show the last {max_count} commits of {repo_path}.", "List {max_count} entries of the commit log of {repo_path}.",
             "git log of {repo_path}, at most {max_count} commits.", "I need the {max_count} most recent commits in {repo_path}."),
            ("{repo_path} の直近 {max_count} 件のコミットを見せて。", "{repo_path} のコミット履歴を {max_count} 件表示してください。",
             "{repo_path} の git log を最大 {max_count} 件で。", "{repo_path} の最新コミットを {max_count} 個教えて。"),
        ),
        Wording(
            {"repo_path": repo},
            ("Show the commit history of {repo_path}.", "Show me the git log of {repo_path}.",
             "What was committed lately in {repo_path}?", "Print the commit log for {repo_path}."),
            ("{repo_path} のコミット履歴を見せて。", "{repo_path} の git log を表示して。",
             "{repo_path} では最近何がコミットされましたか？", "{repo_path} のコミットログを出して。"),
        ),
    ),
    "git_create_branch": (
        Wording(
            {"repo_path": repo, "branch_name": one_of("topic/a", "topic/b", "fix/menu", "fix/totals", "try/cache", "try/ui",
                                                      "feature/tax", "feature/maps")},
            ("Create a branch {branch_name} in {repo_path}.", "Make a new branch called {branch_name} in {repo_path}.",
             "In {repo_path}, start a new branch named {branch_name}."),
            ("{repo_path} にブランチ {branch_name} を作って。", "{repo_path} で新しいブランチ {branch_name} を作成してください。",
             "{repo_path} に {branch_name} という新規ブランチを切って。"),
        ),
    ),
    "git_checkout": (
        Wording(
            {"repo_path": repo, "branch_name": branch},
            ("Switch {repo_path} to the branch {branch_name}.", "Check out {branch_name} in {repo_path}.",
             "In {repo_path}, change to branch {branch_name}.", "Move {repo_path} over to {branch_name}."),
            ("{repo_path} をブランチ {branch_name} に切り替えて。", "{repo_path} で {branch_name} をチェックアウトしてください。",
             "{repo_path} のブランチを {branch_name} に変更して。", "{repo_path} を {branch_name} に移して。"),
        ),
    ),
    "git_show": (
        Wording(
            {"repo_path": repo, "revision": one_of("HEAD", "v1.0", "HEAD~1", "v1.1", "main", "dev", "HEAD~2", "staging")},
            ("Show the commit {revision} of {repo_path}.", "What does revision {revision} of {repo_path} contain?",
             "Display the contents of {revision} in {repo_path}."),
            ("{repo_path} のコミット {revision} を見せて。", "{repo_path} のリビジョン {revision} の内容は？",
             "{repo_path} の {revision} の中身を表示して。"),
        ),
    ),
    "git_branch": (
        Wording(
            {"repo_path": repo, "branch_type": fixed(
                ("local", "local", "ローカル"), ("remote", "remote", "リモート"), ("all", "all", "すべて"))},
            ("List the branches of {repo_path} ({branch_type}).", "Show {branch_type} branches in {repo_path}.",
             "Which branches does {repo_path} have? Type: {branch_type}.", "Branch list of {repo_path}, {branch_type} ones."),
            ("{repo_path} のブランチ一覧（{branch_type}）を見せて。", "{repo_path} の{branch_type}のブランチを一覧にして。",
             "{repo_path} にはどんなブランチがありますか？種類: {branch_type}", "{repo_path} の{branch_type}ブランチを列挙して。"),
        ),
    ),
    "get_current_time": (
        Wording(
            {"timezone": zone},
            ("What time is it in {timezone}?", "Tell me the current time in {timezone}.", "Local time in {timezone} now?",
             "What is the clock showing in {timezone} right now?"),
            ("{timezone}は今何時ですか？", "{timezone}の現在時刻を教えて。", "今の{timezone}の時間は？",
             "いま{timezone}では何時になっていますか？"),
        ),
        Wording(
            {"timezone": zone_by_name},
            ("Current time for the time zone {timezone}?", "Give me the time in {timezone} now.",
             "I need the present time, zone {timezone}."),
            ("タイムゾーン {timezone} の現在時刻は？", "{timezone} の今の時刻をください。", "ゾーン {timezone} はいま何時？"),
        ),
    ),
    "convert_time": (
        Wording(
            {"time": built(_clock), "source_timezone": zone, "target_timezone": zone},
            ("Convert {time} from {source_timezone} to {target_timezone} time.",
             "When it is {time} in {source_timezone}, what time is it in {target_timezone}?",
             "{time} {source_timezone} time: what is that in {target_timezone}?",
             "A call is at {time} in {source_timezone}. Which time is that in {target_timezone}?"),
            ("{source_timezone}の{time}を{target_timezone}の時間に変換して。",
             "{source_timezone}が{time}のとき、{target_timezone}は何時ですか？",
             "{source_timezone}時間の {time} は{target_timezone}では何時？",
             "会議は{source_timezone}の{time}です。{target_timezone}では何時になりますか？"),
        ),
    ),
    "fetch": (
        Wording(
            {"url": page},
            ("Fetch {url}.", "Read the page {url} for me.", "Get the contents of {url}.", "Open {url} and show me the text."),
            ("{url} を取得して。", "{url} のページを読んでください。", "{url} の内容をください。", "{url} を開いて本文を見せて。"),
        ),
        Wording(
            {"url": page, "max_length": number(200, 4000)},
            ("Fetch {url}, at most {max_length} characters.", "Read {url} but return no more than {max_length} characters.",
             "From {url} I want a maximum of {max_length} characters."),
            ("{url} を最大 {max_length} 文字で取得して。", "{url} を読んで、{max_length} 文字までにして。",
             "{url} から上限 {max_length} 文字で本文をください。"),
        ),
        Wording(
            {"url": page},
            ("Fetch the raw HTML of {url}.", "Get {url} raw, without simplification.", "I need the unprocessed HTML source of {url}."),
            ("{url} の生の HTML を取得して。", "{url} を加工せずそのまま(raw)取得してください。", "{url} の未加工の HTML ソースが欲しい。"),
            constants={"raw": True},
        ),
    ),
    "read_query": (
        Wording(
            {"query": built(_select)},
            ("Run this query: {query}", "Execute the SELECT: {query}", "Query the database: {query}", "What does {query} return?"),
            ("このクエリを実行して: {query}", "次の SELECT を実行してください: {query}", "データベースに問い合わせて: {query}",
             "{query} の結果は？"),
        ),
    ),
    "write_query": (
        Wording(
            {"query": built(_change)},
            ("Run this change: {query}", "Execute on the database: {query}", "Apply this SQL statement: {query}",
             "Please carry out {query}"),
            ("この変更を実行して: {query}", "データベースで実行してください: {query}", "次の SQL を適用して: {query}",
             "{query} を行ってください。"),
        ),
    ),
    "create_table": (
        Wording(
            {"query": built(_create)},
            ("Create a table: {query}", "Make this table: {query}", "Set up a new table with {query}", "Please run the DDL {query}"),
            ("テーブルを作って: {query}", "このテーブルを作成してください: {query}", "{query} で新しいテーブルを用意して。",
             "DDL を実行して: {query}"),
        ),
    ),
    "list_tables": (
        Wording(
            {},
            ("Which tables are in the database?", "List all tables.", "Show me the names of the database tables.",
             "What tables does this SQLite database have?", "Give me an overview of the tables."),
            ("データベースにはどんなテーブルがありますか？", "テーブルを一覧にして。", "全テーブルの名前を見せて。",
             "この SQLite データベースのテーブルは？", "テーブルの一覧をお願いします。"),
        ),
    ),
    "describe_table": (
        Wording(
            {"table_name": built(_table)},
            ("Describe the table {table_name}.", "What columns does {table_name} have?", "Show the schema of the table {table_name}."),
            ("テーブル {table_name} の構造を教えて。", "{table_name} にはどんな列がありますか？",
             "テーブル {table_name} のスキーマを見せて。"),
        ),
    ),
    "append_insight": (
        Wording(
            {"insight": one_of(*_INSIGHTS)},
            ('Add the insight "{insight}" to the memo.', 'Note this business insight: "{insight}".',
             'Remember for the report: "{insight}".', 'Put "{insight}" into the insights memo.'),
            ("メモに「{insight}」という知見を追加して。", "この知見を記録してください: 「{insight}」",
             "レポート用に「{insight}」を残して。", "知見メモに「{insight}」を書き足して。"),
        ),
    ),
}  # fmt: skip

WORDINGS: Mapping[str, Sequence[Wording]] = {
    tool: [replace(w, more=more) for w, more in zip(wordings, PARAPHRASES[tool], strict=True)]
    if tool in PARAPHRASES
    else wordings
    for tool, wordings in _WORDINGS.items()
}

JOINS = {
    "en": ("{a} Also: {b}", "{a} And then: {b}", "Two things. {a} {b}", "First: {a} Second: {b}"),
    "ja": ("{a}それから、{b}", "{a}あわせて、{b}", "2つお願いします。{a}{b}", "まず、{a}次に、{b}"),
}
"""How two requests become one that wants two calls."""

SMALL_TALK: Mapping[str, Sequence[tuple[str, str]]] = {
    "en": (
        ("Tell me a joke.", "Why do programmers prefer dark mode? Because light attracts bugs."),
        ("What is 12 times 12?", "144."),
        ("Who wrote Hamlet?", "William Shakespeare."),
        ("Hello!", "Hello! How can I help you?"),
        ("Thanks, that helped a lot.", "You are welcome!"),
        ("What is the capital of France?", "Paris."),
        (
            "Explain recursion in one sentence.",
            "Recursion is when a function solves a problem by calling itself on a smaller one.",
        ),
        ("Write a haiku about rain.", "Soft rain on the roof,\nevery drop a quiet word,\nthe garden listens."),
        ("What is the opposite of cold?", "Hot."),
        ("How many legs does a spider have?", "Eight."),
        ("Translate 'good morning' into French.", "Bonjour."),
        ("Name three primary colors.", "Red, blue and yellow."),
        ("What does HTTP stand for?", "HyperText Transfer Protocol."),
        ("Is Python dynamically typed?", "Yes, Python is dynamically typed."),
        ("Give me a synonym for 'fast'.", "Quick."),
        ("What is the boiling point of water in Celsius?", "100 degrees Celsius at sea level."),
    ),
    "ja": (
        ("冗談を言って。", "布団が吹っ飛んだ！"),
        ("12かける12は？", "144です。"),
        ("「吾輩は猫である」の作者は？", "夏目漱石です。"),
        ("こんにちは！", "こんにちは。何かお手伝いできますか？"),
        ("ありがとう、助かりました。", "どういたしまして。"),
        ("フランスの首都はどこ？", "パリです。"),
        ("再帰を一文で説明して。", "再帰とは、関数が自分自身を呼び出して問題を小さくしながら解くことです。"),
        ("雨の俳句を作って。", "静かなる 屋根に雨音 夜の庭"),
        ("「寒い」の反対は？", "「暑い」です。"),
        ("クモの足は何本？", "8本です。"),
        ("「おはよう」を英語にして。", "Good morning です。"),
        ("三原色を挙げて。", "赤、青、黄です。"),
        ("HTTP は何の略？", "HyperText Transfer Protocol の略です。"),
        ("Python は動的型付け？", "はい、Python は動的型付けの言語です。"),
        ("「速い」の言い換えは？", "「素早い」です。"),
        ("水の沸点は摂氏何度？", "1気圧で100度です。"),
    ),
}
"""Requests that need no tool, with a plain answer."""

OUT_OF_REACH: Mapping[str, Sequence[str]] = {
    "en": (
        "Send an email to Ken that the meeting moved to Friday.", "Book a flight from Osaka to Rome for next Monday.",
        "Play some jazz music.", "Set an alarm for 7 tomorrow morning.", "Order two pizzas to my office.",
        "Turn off the lights in the kitchen.", "Post this photo to Instagram.", "What will the weather be in Nagoya tomorrow?",
        "Call my mother.", "Transfer 50 dollars to Alice.", "Print the file on the second printer.",
        "Add milk to my shopping list.", "Take a screenshot of the desktop.", "Find me a hotel in Kobe under 100 euros.",
        "Start the vacuum cleaner.", "Text Bob that I am late.",
    ),
    "ja": (
        "会議が金曜に変わったと健にメールを送って。", "来週の月曜に大阪からローマへの飛行機を予約して。", "ジャズを流して。",
        "明日の朝7時にアラームをかけて。", "オフィスにピザを2枚注文して。", "台所の電気を消して。",
        "この写真をインスタに投稿して。", "明日の名古屋の天気は？", "母に電話して。", "アリスに50ドル送金して。",
        "2台目のプリンターで印刷して。", "買い物リストに牛乳を追加して。", "デスクトップのスクリーンショットを撮って。",
        "神戸で1万円以下のホテルを探して。", "掃除機を動かして。", "遅れるとボブに連絡して。",
    ),
}  # fmt: skip
"""Requests that no tool of a small hub can serve."""

DECLINE = {
    "en": "None of the tools that I have can do that.",
    "ja": "手元のツールではそれはできません。",
}
