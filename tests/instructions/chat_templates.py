"""Chat templates as publishers ship them, shortened, and transformers' own rendering to compare with."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from stages.instructions.instruction import Turn


class Conversation(NamedTuple):
    """The texts of a row."""

    instruction: str
    input: str
    response: str
    system: str = ""
    history: tuple[Turn, ...] = ()

    @property
    def messages(self) -> list[dict[str, str]]:
        """As transformers takes them."""
        user = f"{self.instruction}\n\n{self.input}" if self.input else self.instruction
        spoken = [message for turn in self.history for message in zip(("user", "assistant"), turn, strict=True)]
        spoken += [("user", user), ("assistant", self.response)]
        spoken = [("system", self.system), *spoken] if self.system else spoken
        return [{"role": role, "content": text} for role, text in spoken]


class ChatTemplate(NamedTuple):
    """A template with the special tokens of its model."""

    source: str
    bos_token: str
    eos_token: str
    closing: str
    """What it closes a response with."""

    @property
    def special_tokens(self) -> dict[str, str]:
        """By name, as in tokenizer_config.json."""
        return {"bos_token": self.bos_token, "eos_token": self.eos_token}


def rendered_by_transformers(source: str, messages: Sequence[dict[str, str]], **variables: Any) -> str | None:
    """The text `apply_chat_template` would give; None where the template refuses the conversation."""
    try:
        texts: Any = render_jinja_template([list(messages)], chat_template=source, **variables)[0]
    except TemplateError:
        return None
    return str(texts[0])


CHAT_TEMPLATES = {
    # HuggingFaceTB/SmolLM2-135M-Instruct: a system message of its own where there is none.
    "smollm2": ChatTemplate(
        """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}""",
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    ),
    # meta-llama/Meta-Llama-3-8B-Instruct: trims.
    "llama3": ChatTemplate(
        "{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
        "+ message['content'] | trim + '<|eot_id|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|eot_id|>",
    ),
    # meta-llama/Llama-3.2-1B-Instruct: tools, and a date that must not be today's.
    "llama32": ChatTemplate(
        """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim }}
        {{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
""",
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|eot_id|>",
    ),
    # Qwen/Qwen2.5-0.5B-Instruct.
    "qwen25": ChatTemplate(
        """{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n' }}
    {%- for tool in tools %}{{- tool | tojson }}{%- endfor %}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",  # noqa: E501
        "<|endoftext|>",
        "<|im_end|>",
        "<|im_end|>",
    ),
    # Qwen/Qwen3-0.6B: the last answer is shown otherwise than those before, and what stands before </think> is dropped.
    "qwen3": ChatTemplate(
        """{%- set ns = namespace(last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.last_query_index == messages|length - 1 and message.role == "user" and message.content is string %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == "assistant" %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
""",
        "<|endoftext|>",
        "<|im_end|>",
        "<|im_end|>",
    ),
    # mistralai/Mistral-7B-Instruct-v0.1: no system message, and roles that must alternate.
    "mistral": ChatTemplate(
        "{{ bos_token }}{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
        "<s>",
        "</s>",
        "</s>",
    ),
    # google/gemma-2-2b-it: no system message, another name for the assistant; trims.
    "gemma": ChatTemplate(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
        "{% set role = message['role'] %}{% endif %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
        "<bos>",
        "<eos>",
        "<end_of_turn>",
    ),
    # HuggingFaceH4/zephyr-7b-beta: on several lines, with the line ends that Jinja leaves out.
    "zephyr": ChatTemplate(
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
        "{{ '<|user|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n"
        "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
        "<s>",
        "</s>",
        "</s>",
    ),
    # microsoft/Phi-3-mini-4k-instruct: the end of a conversation begins as the next turn would, with "<|".
    "phi3": ChatTemplate(
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}"
        "{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}"
        "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        "<s>",
        "<|endoftext|>",
        "<|end|>",
    ),
    # HuggingFaceTB/SmolLM3-3B: marks what the assistant says.
    "smollm3": ChatTemplate(
        """{%- for message in messages -%}
    {%- if message.role == "assistant" -%}
        {%- generation -%}
        {{ "<|im_start|>assistant\\n" + message.content + "<|im_end|>\\n" }}
        {%- endgeneration -%}
    {%- else -%}
        {{ "<|im_start|>" + message.role + "\\n" + message.content + "<|im_end|>\\n" }}
    {%- endif -%}
{%- endfor -%}
""",
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    ),
}
