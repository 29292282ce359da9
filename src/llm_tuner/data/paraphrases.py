"""More ways to ask for the tools of `wording.py`, for training only: other verbs, other word order, other registers.

A model that saw two sentences a tool learns the sentences; with a dozen it has to read. Each entry stands for the
wording of the same place in WORDINGS, English first, then Japanese. No held-out template's wording is repeated here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Paraphrases = tuple[Sequence[str], Sequence[str]]

PARAPHRASES: Mapping[str, Sequence[Paraphrases]] = {
    "git_status": (
        (
            ("What changed in the working directory of {repo_path}?", "Is {repo_path} clean?",
             "I lost track of what I touched in {repo_path}, can you check?", "Check {repo_path} for uncommitted work.",
             "Tell me which files in {repo_path} git does not know yet."),
            ("{repo_path} の作業ディレクトリで何が変わった？", "{repo_path} はきれいな状態ですか？",
             "{repo_path} に未コミットの作業が残っていないか調べて。", "{repo_path} でどのファイルを触ったか知りたいです。",
             "{repo_path} で git がまだ管理していないファイルは？"),
        ),
    ),
    "git_diff_unstaged": (
        (
            ("What did I edit in {repo_path} since the last git add?", "Display the working tree diff of {repo_path}.",
             "Line by line, what have I modified in {repo_path} without staging it?",
             "Print the changes in {repo_path} that git add has not picked up."),
            ("{repo_path} で最後の git add のあとに編集した内容は？", "{repo_path} の作業ツリーの diff を表示して。",
             "{repo_path} で編集したけれどステージに入れていない行を見たいです。", "{repo_path} の未 add の変更点を出力して。"),
        ),
        (
            ("Diff the unstaged edits of {repo_path}, context {context_lines}.",
             "With {context_lines} lines around each change, what is unstaged in {repo_path}?",
             "Print the working tree diff of {repo_path}; use {context_lines} lines of surrounding text."),
            ("{repo_path} のステージ前の差分を、周囲 {context_lines} 行つきで。",
             "変更箇所の前後 {context_lines} 行も含めて、{repo_path} の未ステージの編集を出力して。",
             "{repo_path} の作業ツリーの diff をください。コンテキストは {context_lines} です。"),
        ),
    ),
    "git_diff_staged": (
        (
            ("What would go into the next commit of {repo_path}?", "Print the cached diff of {repo_path}.",
             "Before I commit in {repo_path}, what is in the index?", "I want to check what I have added in {repo_path}."),
            ("{repo_path} の次のコミットには何が入りますか？", "{repo_path} の index にある差分を出力して。",
             "コミット前に {repo_path} の add 済みの内容を見ておきたい。", "{repo_path} で git add した変更の中身は？"),
        ),
    ),
    "git_diff": (
        (
            ("What is different between {target} and the checkout in {repo_path}?", "In {repo_path}, git diff {target}.",
             "List what changed in {repo_path} relative to {target}.", "Which lines of {repo_path} are unlike those on {target}?"),
            ("{target} と {repo_path} の現在の内容では何が変わっていますか？", "{repo_path} で git diff {target} を実行。",
             "{repo_path} について、{target} からの変更点を一覧にして。", "{target} を基準にした {repo_path} の違いを知りたい。"),
        ),
    ),
    "git_commit": (
        (
            ('Save the index of {repo_path} as a commit titled "{message}".', 'Make a commit "{message}" in {repo_path}.',
             'Everything staged in {repo_path} is ready. Commit it as "{message}".',
             'Check in the changes of {repo_path}; the commit message is "{message}".'),
            ("{repo_path} のステージ済みの内容を「{message}」としてコミットしてください。",
             "「{message}」で {repo_path} の commit を作って。", "{repo_path} は準備完了です。「{message}」とコミットして。",
             "{repo_path} で git commit -m 「{message}」をお願い。"),
        ),
    ),
    "git_add": (
        (
            ("Mark {files} in {repo_path} for the next commit.", "Include {files} in the upcoming commit of {repo_path}.",
             "I changed {files} in {repo_path}. Stage it.", "In {repo_path}, get {files} ready to commit."),
            ("{repo_path} の {files} を次のコミットに含めて。", "{repo_path} で {files} をコミット対象にしてください。",
             "{repo_path} の {files} を直したので add しておいて。", "{files} を {repo_path} のステージへ。"),
        ),
        (
            ("Mark {files} in {repo_path} for the next commit.", "git add {files} over in {repo_path}.",
             "Both {files} of {repo_path} should be staged."),
            ("{repo_path} の {files} を次のコミットに含めて。", "{repo_path} で {files} を両方ともステージしてください。",
             "{files} を {repo_path} のインデックスに加えて。"),
        ),
    ),
    "git_reset": (
        (
            ("Clear the index of {repo_path}.", "Nothing in {repo_path} should stay staged.", "Run git reset in {repo_path}.",
             "I added the wrong files in {repo_path}, unstage all of them."),
            ("{repo_path} のインデックスを空にして。", "{repo_path} で git reset を実行してください。",
             "{repo_path} で間違ったファイルを add したので、ステージから全部下ろして。", "{repo_path} では何もステージされていない状態に戻して。"),
        ),
    ),
    "git_log": (
        (
            ("Who committed what in {repo_path}? The newest {max_count} are enough.", "{max_count} latest commits of {repo_path}, please.",
             "Limit the history of {repo_path} to {max_count} commits and show it.", "Go back {max_count} commits in {repo_path} and list them."),
            ("{repo_path} の新しいコミットを {max_count} 件だけ一覧に。", "{repo_path} の履歴を {max_count} コミット分さかのぼって表示して。",
             "{max_count} 件分の {repo_path} のログをお願いします。", "{repo_path} で最後に行われた {max_count} 回のコミットは？"),
        ),
        (
            ("What is the history of {repo_path}?", "List past commits in {repo_path}.", "Which commits does {repo_path} have?",
             "I would like to see what happened in {repo_path} over time."),
            ("{repo_path} の歴史を教えて。", "{repo_path} の過去のコミットを一覧にして。", "{repo_path} にはどんなコミットがある？",
             "{repo_path} のこれまでの変更の経緯を見たいです。"),
        ),
    ),
    "git_create_branch": (
        (
            ("Open {branch_name} as a new branch of {repo_path}.", "I need a branch {branch_name} in {repo_path}, create it.",
             "Branch off in {repo_path} under the name {branch_name}."),
            ("{repo_path} で {branch_name} ブランチを新しく始めて。", "{repo_path} に {branch_name} ブランチが必要です。作成して。",
             "{branch_name} という名前で {repo_path} のブランチを新設してください。"),
        ),
    ),
    "git_checkout": (
        (
            ("Use the branch {branch_name} in {repo_path} from now on.", "git checkout {branch_name} in {repo_path}.",
             "Go to {branch_name} in {repo_path}.", "I want to work on {branch_name}, switch {repo_path} to it.",
             "Make {branch_name} the current branch of {repo_path}."),
            ("{repo_path} でこれから {branch_name} を使います。切り替えて。", "{repo_path} で git checkout {branch_name} を実行。",
             "{branch_name} で作業したいので {repo_path} を切り替えてください。", "{repo_path} の現在のブランチを {branch_name} にして。",
             "{repo_path} では {branch_name} に行って。"),
        ),
    ),
    "git_show": (
        (
            ("Open {revision} of {repo_path} and show what it changed.", "git show {revision} in {repo_path}."),
            ("{repo_path} で git show {revision} を実行。", "{repo_path} の {revision} で何が変わったか見せて。"),
        ),
    ),
    "git_branch": (
        (
            ("What branches exist in {repo_path}? I mean {branch_type}.", "Print {branch_type} branches of {repo_path}.",
             "In {repo_path}, name every branch of the kind {branch_type}.", "git branch for {repo_path}: {branch_type}."),
            ("{repo_path} にあるブランチは？（{branch_type}）", "{repo_path} の{branch_type}のブランチ名を出力して。",
             "{repo_path} のブランチを確認したい。対象: {branch_type}", "{repo_path} で git branch。範囲は{branch_type}。"),
        ),
    ),
    "get_current_time": (
        (
            ("What's the time over in {timezone}?", "Is it late in {timezone}? Give me the exact time.", "{timezone} time, please.",
             "I am about to call someone in {timezone}. What time do they have?", "How late is it in {timezone}?"),
            ("{timezone}の時刻は？", "{timezone}の人に電話したい。向こうは何時？", "{timezone}はもう夜ですか？正確な時刻をください。",
             "現在の{timezone}の時刻を調べて。", "{timezone}って今何時？"),
        ),
        (
            ("Clock in {timezone}?", "Use the time zone {timezone} and tell me what time it is.", "Now in {timezone}, please."),
            ("{timezone} だと今何時ですか？", "{timezone} の時計を見せて。", "タイムゾーンは {timezone} です。現在時刻を教えて。"),
        ),
    ),
    "convert_time": (
        (
            ("Translate {time} in {source_timezone} into the time of {target_timezone}.",
             "My train in {source_timezone} leaves at {time}. What will clocks in {target_timezone} say?",
             "If someone in {source_timezone} says {time}, what does that mean for me in {target_timezone}?",
             "{source_timezone} {time} as {target_timezone} time, please."),
            ("{source_timezone}時間で{time}は、{target_timezone}の何時にあたりますか？",
             "{source_timezone}を{time}に出発します。そのとき{target_timezone}は何時？",
             "{time}（{source_timezone}）を{target_timezone}に直して。",
             "{source_timezone}の人が{time}と言っています。{target_timezone}ではいつ？"),
        ),
    ),
    "fetch": (
        (
            ("What does {url} say?", "Download {url}.", "I want to read {url}.", "Load {url} and give me what is on it.",
             "Please look at {url}."),
            ("{url} には何と書いてある？", "{url} をダウンロードして。", "{url} を読みたいです。", "{url} を読み込んで中身を教えて。",
             "{url} を見てください。"),
        ),
        (
            ("Load {url} and stop after {max_length} characters.", "The first {max_length} characters of {url}, please.",
             "Get {url}; cut it at {max_length} characters."),
            ("{url} の最初の {max_length} 文字をください。", "{url} を読み込み、{max_length} 文字で切って。",
             "{url} のページを {max_length} 文字以内で見せてください。"),
        ),
        (
            ("Download {url} as raw HTML.", "Show me the page source of {url}, tags included.", "{url} with its markup, not as text, please."),
            ("{url} を生の HTML のままダウンロードして。", "{url} のページのソースをタグつきで見せて。", "{url} をテキスト化せずにマークアップごとください。"),
        ),
    ),
    "read_query": (
        (
            ("Look this up in the database: {query}", "I need the result of {query}", "Read from the database with {query}",
             "{query} - what comes back?", "Give me the rows for {query}"),
            ("データベースで調べて: {query}", "{query} を実行して行をください。", "{query} で何が返ってきますか？", "読み取りクエリです: {query}",
             "{query} の行を見せて。"),
        ),
    ),
    "write_query": (
        (
            ("Change the data: {query}", "{query} - make it so.", "Modify the database with {query}", "Do this write: {query}",
             "The data needs this update: {query}"),
            ("データを変更して: {query}", "{query} でデータベースを書き換えて。", "{query} をお願いします。", "書き込みクエリです: {query}",
             "データの更新が必要です: {query}"),
        ),
    ),
    "create_table": (
        (
            ("Add a table to the database: {query}", "{query} - the table does not exist yet.", "Define this table: {query}",
             "I need another table, here is the statement: {query}", "Use {query} to build the table."),
            ("データベースにテーブルを追加して: {query}", "{query} まだ無いテーブルです。", "このテーブルを定義して: {query}",
             "テーブルがもう一つ必要です。文はこれ: {query}", "{query} を使ってテーブルを新設してください。"),
        ),
    ),
    "list_tables": (
        (
            ("What is stored in the database? Just the table names.", "Table names, please.", "Enumerate the tables.",
             "Which tables can I query?"),
            ("データベースに何が入っている？テーブル名だけで。", "テーブル名をください。", "問い合わせできるテーブルを列挙して。", "どのテーブルが使えますか？"),
        ),
    ),
    "describe_table": (
        (
            ("Which fields are in {table_name}?", "Column types of {table_name}?"),
            ("{table_name} の項目は何ですか？", "{table_name} の列の型は？"),
        ),
    ),
    "append_insight": (
        (
            ('I noticed this: "{insight}". Keep it in the memo.', 'Business insight to record: "{insight}".',
             'Write down "{insight}" for later.', 'Append "{insight}" to what we have learned.'),
            ("気づいたこと: 「{insight}」。メモに残して。", "ビジネス上の知見「{insight}」を保存してください。",
             "あとで使うので「{insight}」を書き留めて。", "これまでの知見に「{insight}」を加えて。"),
        ),
    ),
}  # fmt: skip

OPENINGS = {
    "en": ("Hi! ", "Quick one: ", "When you have a second: ", "Next, ", "OK. ", "Hey, "),
    "ja": ("お願いがあります。", "すみません、", "次は、", "では、", "ちょっといい？ ", "こんにちは。"),
}
CLOSINGS = {
    "en": (" Thanks.", " Thank you!", " It is urgent.", " No rush."),
    "ja": ("よろしくお願いします。", "助かります。", "急ぎです。", "ありがとう。"),
}
"""What people say around a request; it changes nothing about the call."""

MORE_SMALL_TALK: Mapping[str, Sequence[tuple[str, str]]] = {
    "en": (
        ("How do I exit vim?", "Press Escape, type :q! and press Enter."),
        ("What is 7 plus 15?", "22."),
        ("Which planet is the largest?", "Jupiter."),
        ("Do you speak Japanese?", "Yes, I can answer in Japanese, too."),
        ("Good evening.", "Good evening! What can I do for you?"),
        ("Never mind, I found it myself.", "Good to hear."),
        ("What is a primary key?", "A column, or several, whose value names exactly one row of a table."),
        (
            "What is the difference between merge and rebase?",
            "A merge joins two histories with a commit of its own; a rebase writes the commits anew on top of the other branch.",
        ),
        ("Is a time zone the same as an offset?", "No. A zone has rules about which offset holds when."),
        ("Why is my code slow?", "I would have to see it. Which part takes the time?"),
        ("Give me a name for a kitten.", "Miso."),
        ("Say something nice.", "You ask good questions."),
        ("What does SQL stand for?", "Structured Query Language."),
        ("How many minutes are in a day?", "1,440."),
        ("In one sentence, what is a URL?", "The address of a resource, with the protocol by which it is reached."),
        ("Which is bigger, 3/4 or 2/3?", "3/4."),
        ("What is the plural of 'index'?", "Indexes, or indices."),
        ("Can you explain what a git branch is?", "A name that points to a commit and moves on with each new one."),
        ("Write a one-line Python function that squares a number.", "square = lambda x: x * x"),
        ("Are you a human?", "No, I am a language model."),
    ),
    "ja": (
        ("vim の終了方法は？", "Esc を押してから :q! と入力し、Enter を押します。"),
        ("7足す15は？", "22です。"),
        ("一番大きい惑星は？", "木星です。"),
        ("英語は話せますか？", "はい、英語でもお答えできます。"),
        ("こんばんは。", "こんばんは。ご用件は何でしょうか？"),
        ("やっぱり自分で見つけました。", "それはよかったです。"),
        ("主キーって何？", "表の一行をただ一つに定める列、または列の組です。"),
        (
            "merge と rebase の違いは？",
            "merge は二つの履歴を新しいコミットで合わせ、rebase はコミットを別のブランチの上に書き直します。",
        ),
        ("タイムゾーンと時差は同じもの？", "いいえ。タイムゾーンは、いつどの時差になるかの規則です。"),
        ("私のコードはなぜ遅いの？", "見てみないと分かりません。どの部分に時間がかかっていますか？"),
        ("子猫の名前を考えて。", "「みそ」はいかがでしょう。"),
        ("何かいいことを言って。", "いい質問をされますね。"),
        ("SQL は何の略？", "Structured Query Language の略です。"),
        ("一日は何分？", "1440分です。"),
        ("URL とは何か、一文で。", "資源の場所と、そこに届くための手順を示す文字列です。"),
        ("4分の3と3分の2、大きいのは？", "4分の3です。"),
        ("「index」の複数形は？", "indexes、または indices です。"),
        ("git のブランチとは何ですか？", "コミットを指す名前で、新しいコミットのたびに先へ進みます。"),
        ("数を二乗する Python の関数を一行で書いて。", "square = lambda x: x * x"),
        ("あなたは人間？", "いいえ、言語モデルです。"),
    ),
}

MORE_OUT_OF_REACH: Mapping[str, Sequence[str]] = {
    "en": (
        "Rename all my photos by date.", "Block this number on my phone.", "Remind me to water the plants.",
        "Reserve a table for four at eight.", "Convert this PDF into a Word file.", "Lock the front door.",
        "What is the traffic like on my way home?", "Open the calculator.", "Buy two tickets for the museum.",
        "Turn the volume down.", "Who called me yesterday?", "Create an invoice for Tanaka.", "Scan the receipt.",
        "Share my location with Emma.", "Deploy the app to production.", "Restart the web server.",
        "Run the unit tests.", "Upload the backup to the cloud.", "Zip the reports folder.", "Record a voice memo.",
        "How did the Giants play last night?", "What is the price of gold today?", "Open a ticket about the broken login.",
        "Invite Sara to the meeting.", "Delete my browsing history.", "Install the newest driver.",
        "Translate this document into Korean and mail it.", "Measure my heart rate.", "Water the garden at six.",
        "Draw a picture of a lighthouse.",
    ),
    "ja": (
        "写真を全部日付で名前を変えて。", "この番号を着信拒否にして。", "植物に水をやるよう後で知らせて。", "8時に4人で席を予約して。",
        "この PDF を Word にして。", "玄関の鍵を閉めて。", "帰り道は混んでいる？", "電卓を開いて。", "美術館の券を2枚買って。",
        "音量を下げて。", "昨日電話してきたのは誰？", "田中さん宛ての請求書を作って。", "レシートをスキャンして。",
        "今いる場所をエマに知らせて。", "アプリを本番に出して。", "ウェブサーバーを再起動して。", "単体テストを走らせて。",
        "バックアップをクラウドに上げて。", "報告書のフォルダーを圧縮して。", "音声メモを録って。", "昨日の巨人の試合はどうだった？",
        "今日の金の値段は？", "ログインの不具合でチケットを切って。", "会議に佐藤さんを招待して。", "閲覧履歴を消して。",
        "最新のドライバーを入れて。", "この文書を韓国語にして送って。", "心拍数を測って。", "6時に庭に水をまいて。", "灯台の絵を描いて。",
    ),
}  # fmt: skip
