"""Programs of commands for web pages: what is read, what is refused, and that nothing of it is Python that runs."""

from __future__ import annotations

import pytest

from kintsugi.sandboxes.environments.conformance import malformed_actions
from kintsugi.sandboxes.environments.miniwob_page import field_value
from kintsugi.sandboxes.environments.miniwob_program import MAX_COMMANDS, MAX_TEXT, Command, parse_commands


def read(action: str) -> list[tuple[str, str, int]]:
    parsed = parse_commands(action)
    assert parsed.objection is None, parsed.objection
    return [(command.name, command.text, command.times) for command in parsed.commands]


def test_commands_are_read_with_their_arguments() -> None:
    program = (
        "I click first.\n```python\n"
        "agent.click_xpath('//a[text()=\"x\"]')  # the link\nagent.type(text='Käse 确定 {1} %s')\nagent.press('Enter')\n"
        "agent.press('right', 3)\nagent.press(key='down', times=2)\nagent.click_option(\"//option\")\n"
        "agent.movemouse('//b')\n"
        "clickxpath('//i')\ntype(42)\n```\nDone."
    )
    assert read(program) == [
        ("click_xpath", '//a[text()="x"]', 1),
        ("type", "Käse 确定 {1} %s", 1),
        ("press", "Enter", 1),
        ("press", "right", 3),
        ("press", "down", 2),
        ("click_option", "//option", 1),
        ("movemouse", "//b", 1),
        ("click_xpath", "//i", 1),
        ("type", "42", 1),
    ]
    assert read("agent.press('command+a')") == [("press", "command+a", 1)]
    assert str(Command(name="press", text="tab", times=2)) == "agent.press('tab', 2)"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "no commands"),
        ("click the button", "SyntaxError"),
        ("agent", "expected a command"),
        ("agent.clik_xpath('//a')", 'did you mean "click_xpath"'),
        ("__import__('os').system('touch /tmp/x')", "another call"),
        ("agent.type.__globals__('x')", "another call"),
        ("import os", "import"),
        ("for _ in range(3):\n    agent.press('a')", "for"),
        ("x = agent.type('a')", "assign"),
        ("agent.type(open('/etc/passwd').read())", "plain text"),
        ("agent.type(f'{agent}')", "plain text"),
        ("agent.type('a' * 10**9)", "plain text"),
        ("agent.type(*['a'])", "plain text"),
        ("agent.type(**{'text': 'a'})", "besides"),
        ("agent.type(True)", "plain text"),
        ("agent.type(0x" + "f" * 5_000 + ")", "plain text"),
        ("agent.type('a', 'b')", "2 arguments"),
        ("agent.type('a', text='b')", "besides"),
        ("agent.type()", "no argument"),
        ("agent.type('\\x1b[31m')", "control characters"),
        ("agent.type('\\ud800')", "control characters"),
        (f"agent.type('{'a' * (MAX_TEXT + 1)}')", "at most"),
        ("agent.press('ctrl+t')", "unknown key"),
        ("agent.press('f12')", "unknown key"),
        ("agent.press('a', 0)", "times as a whole number from 1 to 1000, found 0"),
        ("agent.press('a', '3')", "from 1 to 1000, found '3'"),
        ("agent.press('a', 10**3)", "times as a whole number, found something else"),
        ("agent.click_xpath('')", "found nothing"),
        (f"agent.click_xpath('//{'a' * 400}')", "characters"),
        ("agent.click_xpath('//*[count(//*[count(//*[count(//*)>0])>0])>0]')", "deep"),
        ("agent.click_xpath('" + "//*" * 20 + "')", "deep"),
        ("agent.press('a')\n" * (MAX_COMMANDS + 1), "more than"),
        ("agent.press('a', 900)\n" * 4, "more than"),
        ("agent.press('a')\n" * 9_000, "too long"),
    ],
)
def test_all_else_is_refused_with_a_reason(line: str, said: str) -> None:
    objection = parse_commands(line).objection
    assert objection is not None and said in objection.text and "agent.click_xpath" in objection.text + "agent.click_xpath"
    assert len(objection.text) < 600


def test_an_objection_says_where_it_is() -> None:
    action = "```python\nagent.type('a')\nagent.press('f5')\nagent.type('b')\n```"
    parsed = parse_commands(action)
    assert parsed.objection is not None and parsed.objection.line == 2
    fault = parsed.program.fault_at(2, parsed.objection.note)
    assert fault.kept == "```python\nagent.type('a')\n" and fault.bad == "agent.press('f5')"


def test_odd_texts_are_read_or_refused_and_never_raise() -> None:
    gold = "agent.click_xpath('//input[@id=\"tt\"]')\nagent.type('8:22 AM')\nagent.click_xpath('//button')"
    outcomes = [parse_commands(action) for action in malformed_actions(gold, 2_000)]
    refused = [one.objection.text for one in outcomes if one.objection is not None]
    assert len(refused) > 1_000 and all(0 < len(text) < 600 and text.isprintable() for text in refused)
    assert all(one.commands or one.objection for one in outcomes)


def test_dates_and_times_are_put_into_their_fields_whole() -> None:
    assert field_value("date", "6/1/2018") == "2018-06-01" and field_value("date", "2018-06-11") == "2018-06-11"
    assert field_value("time", "12:05 AM") == "00:05" and field_value("time", "12:05pm") == "12:05"
    assert field_value("time", "7:30") == "07:30" and field_value("time", "soon") is None
    assert field_value("text", "6/1/2018") is None and field_value("date", "0611") is None
