"""Words, loanwords and the lexicon: the rules that requests and definitions go through."""

import pytest

from llm_tuner.tools.lexicon import ideas, japanese_ideas, katakana, lexicon, read, sound
from llm_tuner.tools.words import bigrams, pieces, shaped, stem, stems


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("read_text_file", ["read", "text", "file"]),
        ("readTextFile", ["read", "text", "file"]),
        ("HTMLPage2PDF", ["html", "page2", "pdf"]),
        ("slack-get.users/list", ["slack", "get", "users", "list"]),
        ("Größe ändern", ["größe", "ändern"]),
        ("ファイルをreadする", ["read"]),
        ("", []),
    ],
)
def test_compound_names_are_their_parts(text, said):
    assert list(pieces(text)) == said


def test_the_forms_of_a_word_are_one():
    for forms in (
        "create creates created creating creation",
        "list lists listed listing",
        "copy copies copied" if stem("copied") == stem("copy") else "copy copies",
        "branch branches branching",
        "stop stops stopped stopping",
        "move moves moved moving",
        "commit commits committed committing",
        "entity entities",
        "call calls called calling",
    ):
        assert len({stem(word) for word in forms.split()}) == 1, forms
    for word in ("status", "this", "class", "bus", "s", "", "1024"):
        assert stem(word) == (word if word != "class" else "clas")


def test_stop_words_say_nothing():
    assert stems("Could you please show me the files that I have?") == stems("show files")


def test_japanese_is_pairs_of_characters_but_not_endings():
    assert bigrams("差分を見せて") == ["差分", "分を", "を見", "見せ"]
    assert bigrams("図 git status") == ["図"]
    assert bigrams("してください") == []


def test_values_are_told_by_their_form():
    text, said = shaped("Open https://example.org/a?b=c and src/main.py at 14:30 on #general, see org/repo#12")
    assert [words[0] for words in said] == [stem(word) for word in ("url", "channel", "number", "time", "file")]
    assert "example" not in text
    assert "main" not in text
    assert shaped("ログを見せて") == ("ログを見せて", [])
    assert shaped("9時に")[1] == [("tim",)]


def test_the_lexicon_knows_words_in_both_languages_and_ends_of_words_do_not_count():
    known = dict(japanese_ideas("コミットの履歴を表示して、古いファイルを消してください"))
    assert stem("commit") in known["コミット"]
    assert stem("history") in known["履歴"]
    assert stem("delete") in known["消"]
    assert "消" not in dict(japanese_ideas("消費電力"))  # a single kanji inside another word
    assert dict(japanese_ideas("消去"))["消去"]
    (word, alike), *_ = ideas(stems("pull requests, listed"))
    assert word == ("pul", "request")
    assert "pr" in alike


def test_every_line_of_the_lexicon_is_of_use():
    found = lexicon()
    assert len(found.japanese) > 600
    assert len(found.english) > 400
    assert all(len(alike) > 0 for alike in found.japanese.values())
    assert read("# nothing\n\nsay = 言っ # end") == read("say = 言っ")


@pytest.mark.parametrize(
    ("kana", "word"),
    [
        ("コミット", "commit"),
        ("ブランチ", "branch"),
        ("リポジトリ", "repository"),
        ("メッセージ", "message"),
        ("チャンネル", "channel"),
        ("カレンダー", "calendar"),
        ("ミーティング", "meeting"),
        ("テンプレート", "template"),
        ("ワークスペース", "workspace"),
        ("コンテナ", "container"),
        ("フォルダ", "folder"),
        ("データベース", "database"),
        ("セッション", "session"),
        ("レビュー", "review"),
        ("オーガニゼーション", "organization"),
        ("デプロイ", "deploy"),
    ],
)
def test_loanwords_sound_like_their_english(kana, word):
    assert katakana(kana) == [kana]
    assert sound(kana) == sound(word)


def test_other_words_sound_otherwise():
    words = ["commit", "branch", "repository", "message", "calendar", "template", "container", "database", "workspace"]
    assert len({sound(word) for word in words}) == len(words)
