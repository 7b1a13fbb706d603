import time
from datetime import datetime

import msgspec
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from atoll.errors import InvalidData
from atoll.model.chat import LARGEST_TEMPLATE, ChatTemplate
from tests.model.gguf_files import TEMPLATE

TALK = [
    {"role": "system", "content": "Be brief.\n"},
    {"role": "user", "content": "  <b>What's</b> 2 > 1? 🏝 \n\n"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": ""},
]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"x": [1, 2.5, None, True, "é"]}}}]
LLAMA_LIKE = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{%- if tools is not none %}{{ "Tools:\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|' + message['role'] + '|>' + message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("one call at a time") }}
        {%- endif %}
        {{- loop.index0 ~ ':' ~ message.tool_calls[0].name ~ (message.tool_calls[0].arguments | tojson) }}
    {%- else %}{% continue %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{%- endif %}
"""
TRICKS = """{% set ns = namespace(found=false, n=0) %}{% macro part(x, y='-') %}[{{ x }}{{ y }}]{% endmacro %}
{% for m in messages if m.role == 'user' %}{% set ns.found = true %}{% set ns.n = ns.n + loop.length %}
{{ part(m.content.strip().split(' ')[0], y='%s' % loop.last) }}{% if loop.first %}first{% else %}
{{ loop.previtem.role }}{% endif %}
{% endfor %}{% for k, v in {'a': 1, 'b': [2, 3]}.items() %}{{ k }}={{ v }} {% endfor %}{{ ns.found and ns.n }}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join('|') }}
{{ messages[::-1][0].role }} {% for i in range(3) %}{{ i * 2 }},{% endfor %}{{ 'x' in 'xyz' }} {{ dict(a=1) }}
{{ "{}-{}".format(1, 'b') }} {{ undefined_thing }} {{ 7 // 2 }} {{ 7 % 4 }} {{ '-' * 5 }} {{ messages is iterable }}
{% set block %}{{ eos_token }}!{% endset %}{{ block | upper }}
"""
CALLS = [
    *TALK[:2],
    {"role": "assistant", "content": None, "tool_calls": [{"name": "look", "arguments": {"x": "<'é'>"}}]},
]


TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def by_transformers(template, talk, tools):
    with_keys = [{key: value for key, value in message.items() if value is not None} for message in talk]
    return render_jinja_template(
        [with_keys], tools=tools or None, chat_template=template, add_generation_prompt=True, **TOKENS
    )[0][0]


@pytest.mark.parametrize("template", [TEMPLATE, LLAMA_LIKE, TRICKS], ids=["ChatML", "Llama", "tricks"])
@pytest.mark.parametrize("tools", [[], TOOLS], ids=["no tools", "tools"])
@pytest.mark.parametrize("talk", [TALK, TALK[1:], TALK[1:2]], ids=["all", "no system", "one"])
def test_the_text_is_that_of_transformers(template, tools, talk):
    assert ChatTemplate(template, TOKENS).text(talk, tools=tools) == by_transformers(template, talk, tools)


def test_calls_of_tools_may_come_without_content():
    text = ChatTemplate(LLAMA_LIKE, TOKENS).text(CALLS, tools=TOOLS)
    assert text == by_transformers(LLAMA_LIKE, CALLS, TOOLS)
    assert "<'é'>" in text


def test_the_date_is_told_where_it_is_given():
    template = "{{ strftime_now('%d %b %Y') if strftime_now is defined else 'no day' }}"
    assert ChatTemplate(template, {}).text([], now=datetime(2026, 11, 27)) == "27 Nov 2026"
    assert ChatTemplate(template, {}).text([]) == "no day"


def test_a_template_may_refuse_a_conversation():
    chat = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(InvalidData, match="roles must alternate"):
        chat.text(TALK)


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{{",
        "{% nosuch %}",
        "{% if x %}",
        "x" * (LARGEST_TEMPLATE + 1),
        "{{" + "(" * 5000 + "}}",
        "{{ a.b|zz }}",
    ],
)
def test_what_is_no_template_is_refused(source):
    with pytest.raises(InvalidData, match="chat template"):
        ChatTemplate(source, {})


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ raise_exception.__globals__['os'] }}",
        "{{ namespace.__init__.__globals__['os'] }}",
        "{{ self.__init__.__globals__ }}",
        "{{ lipsum() }}",
        "{{ [1, 2] | random }}",
        "{{ (messages | first).update({'role': 'x'}) }}",
    ],
)
def test_nothing_outside_is_reached(source):
    with pytest.raises(InvalidData, match="chat template"):
        ChatTemplate("{% for m in messages %}{{ m.role }}{% endfor %}" + source, {}).text(TALK)


DOUBLING = "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(100) %}"
NEST = "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
CALLING = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
BOMBS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops that print": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "a list doubled": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "a nest": NEST + "{{ ns.x }}",
    "a nest as JSON": NEST + "{{ ns.x | tojson }}",
    "a nest as text": NEST + "{{ ns.x ~ '' }}{{ '%s' % ns.x }}",
    "a nest in a format": NEST + "{{ '%s' % ns.x }}",
    "nests compared": NEST + NEST.replace("ns", "other") + "{{ ns.x == other.x }}",
    "nests sorted": NEST + NEST.replace("ns", "other") + "{{ [ns.x, other.x] | sort }}",
    "a nest looked for": NEST + NEST.replace("ns", "other") + "{{ [ns.x].index(other.x) }}",
    "a nest by a test": NEST + NEST.replace("ns", "other") + "{{ ns.x is eq other.x }}",
    "+": DOUBLING + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "~": DOUBLING + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "a block": DOUBLING + "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "replace": DOUBLING + "{% set ns.x = ns.x | replace('x', 'xx') %}{% endfor %}",
    "replace, a method": DOUBLING + "{% set ns.x = ns.x.replace('x', 'xx') %}{% endfor %}",
    "join": DOUBLING + "{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
    "format": DOUBLING + "{% set ns.x = '{}{}'.format(ns.x, ns.x) %}{% endfor %}",
    "%": DOUBLING + "{% set ns.x = '%s%s' % (ns.x, ns.x) %}{% endfor %}",
    "a macro": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "a deep tree of calls": CALLING + "{{ f(40) }}",
    "times": "{{ 'x' * 999999999 }}",
    "times, the other way": "{{ 999999999 * 'x' }}",
    "a list of times": "{{ ([1] * 999999999) | length }}",
    "powers": "{{ 9 ** 9 ** 9 }}",
    "factors": "{% set ns = namespace(x=9) %}{% for i in range(90) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "center": "{{ 'x' | center(999999999) }}",
    "ljust": "{{ 'x'.ljust(999999999) }}",
    "a width": "{{ '%999999999d' % 1 }}",
    "a width from outside": "{{ '%*d' % (999999999, 1) }}",
    "a width of format": "{{ '{:999999999}'.format(1) }}",
    "a width in a width": "{{ '{:{}}'.format(1, 999999999) }}",
    "the filter format": "{{ '%999999999d' | format(1) }}",
    "indent": "{{ 'x\n' | indent(999999999) }}",
    "indent by name": "{{ 'x\n' | indent(width=999999999) }}",
    "a long indent": "{{ ('x\n' * 99999) | indent('x' * 99999) }}",
    "indents of JSON": "{{ [[1] * 9999] | tojson(indent=8000000) }}",
    "wide JSON": "{{ ([1] * 9999) | tojson(separators=('x' * 999999, ':')) }}",
    "slices": "{{ [1] | slice(8000000) | list }}",
    "batches by name": "{{ [1] | batch(linecount=999999999, fill_with=1) | list }}",
    "lines of one letter": "{{ ('x' * 999999) | wordwrap(width=1) }}",
    "much for little": "{{ ('x' * 99999) | replace('x', 'x' * 99999) }}",
    "much for little, by name": "{{ ('x' * 99999) | replace(new='x' * 99999, old='x') }}",
    "much for little, a method": "{{ ('x' * 99999).replace('x', 'x' * 99999) }}",
    "much for nothing": "{{ ('x' * 99999).replace('', 'x' * 99999) }}",
    "much between": "{{ ('x' * 99999) | list | join('x' * 99999) }}",
    "much between letters": "{{ ('x' * 99999) | select | join('x' * 99999) }}",
    "much between, a method": "{{ ('x' * 99999).join('x' * 99999) }}",
    "much in a format": "{{ ('{0}' * 9999).format('x' * 999999) }}",
    "much in a %": "{{ ('%(x)s' * 9999) % {'x': 'x' * 999999} }}",
    "tabs": "{{ ('\t' * 99999).expandtabs(99999) }}",
    "a table": "{{ ('x' * 99999).translate({120: 'x' * 99999}) }}",
    "bytes": "{{ (1).to_bytes(length=999999999, byteorder='big') }}",
    "bytes of a text": "{{ 'x'.encode() }}",
    "much to strip": "{{ ('x' * 7999999).strip('y' * 7999999 + 'x') }}",
    "digits": "{{ 5 | round(-999999999) }}",
    "a sum of lists": "{{ ([[1]] * 99999) | sum(start=[]) }}",
    "slices of much": DOUBLING + "{% if loop.index < 19 %}{% set ns.x = ns.x ~ ns.x %}{% endif %}{% endfor %}"
    "{% for i in range(99999) %}{% set y = ns.x[1:] %}{% endfor %}",
    "comparing much": DOUBLING + "{% if loop.index < 19 %}{% set ns.x = ns.x ~ ns.x %}{% endif %}{% endfor %}"
    "{% for i in range(99999) %}{% if 'y' in ns.x %}{% endif %}{% endfor %}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_takes_too_much_ends_soon(name):
    began = time.monotonic()
    with pytest.raises(InvalidData, match="chat template"):
        ChatTemplate(BOMBS[name], {}).text(TALK)
    assert time.monotonic() - began < 60  # not a figure: without limits these take hours, or all memory


def test_a_budget_is_that_of_one_text():
    chat = ChatTemplate("{% for a in range(99999) %}{% endfor %}", {})
    for _ in range(20):
        chat.text(TALK)


def test_long_conversations_are_within_it():
    each_knows_the_last = "{% for m in messages %}{% if loop.index == messages | length %}!{% endif %}{% endfor %}"
    assert ChatTemplate(each_knows_the_last, {}).text(TALK * 1000) == "!"
    talk = [{"role": "user", "content": "word " * 2000}, {"role": "assistant", "content": "word " * 2000}] * 200
    assert len(ChatTemplate(TEMPLATE, {}).text(talk)) > 4_000_000


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_what_is_nested_too_deep_is_refused(opening):
    closing = {"[": "]", '{"a":': "}"}[opening]
    deep = msgspec.json.decode(opening * 900 + "1" + closing * 900)
    with pytest.raises(InvalidData, match="nested too deep"):
        ChatTemplate("{{ messages }}", {}).text([{"role": "user", "content": "x", "more": deep}])
