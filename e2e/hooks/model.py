"""A scripted model on loopback, in the forms that coding agents speak: it asks for one tool call, then ends.

The first turn answers with the tool call that it was given for this form; every turn that brings a tool's result
answers with a text. What the agents sent is kept: what the model was told is what a user's model would be told.
"""

import http.server
import json
import threading


class Model:
    def __init__(self, call):
        """`call(form)` gives the tool and its arguments for a form: anthropic, responses, gemini, chat."""
        self.call, self.told, self.asked = call, [], []
        model = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                model.asked.append(f"GET {self.path}")
                self.send(200, "application/json", model.listing(self.path))

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                model.asked.append(f"POST {self.path}")
                status, kind, answer = model.answer(self.path, body)
                self.send(status, kind, answer)

            def send(self, status, kind, body):
                body = body.encode()
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def listing(self, path):
        if path.startswith("/models"):
            return json.dumps({"data": [{"id": "scripted", "object": "model"}], "models": []})
        return "{}"

    def answer(self, path, body):
        forms = {"/v1/messages": anthropic, "/v1/responses": responses, "/responses": responses,
                 "/v1/chat/completions": chat, "/chat/completions": chat}
        where = path.split("?")[0]
        form = gemini if ":streamGenerateContent" in where or ":generateContent" in where else forms.get(where)
        if form is None:
            return 200, "application/json", "{}"
        request = json.loads(body)
        result, answer = form(request, self.call)
        if result is not None:
            self.told.append(result)
        if "streamGenerateContent" in where or request.get("stream"):
            return 200, "text/event-stream", answer
        return 200, "application/json", answer


def sse(events):
    return "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" if name else f"data: {json.dumps(data)}\n\n"
                   for name, data in events)


def text_of(content):
    if isinstance(content, str):
        return content
    return " ".join(part.get("text", "") for part in content or [] if isinstance(part, dict))


def anthropic(request, call):
    blocks = [block for message in request["messages"] if isinstance(message["content"], list) for block in message["content"]]
    results = [text_of(block.get("content")) for block in blocks if block.get("type") == "tool_result"]
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": request["model"], "content": [],
               "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}}
    tool, arguments = call("anthropic")
    if results or not any(offered.get("name") == tool for offered in request.get("tools") or []):
        start, delta, why = {"type": "text", "text": ""}, {"type": "text_delta", "text": "done"}, "end_turn"
    else:
        start = {"type": "tool_use", "id": "toolu_1", "name": tool, "input": {}}
        delta, why = {"type": "input_json_delta", "partial_json": json.dumps(arguments)}, "tool_use"
    if not request.get("stream"):
        content = [{"type": "text", "text": "done"}]
        return None, json.dumps({**message, "content": content, "stop_reason": "end_turn"})
    events = [("message_start", {"type": "message_start", "message": message}),
              ("content_block_start", {"type": "content_block_start", "index": 0, "content_block": start}),
              ("content_block_delta", {"type": "content_block_delta", "index": 0, "delta": delta}),
              ("content_block_stop", {"type": "content_block_stop", "index": 0}),
              ("message_delta", {"type": "message_delta", "delta": {"stop_reason": why, "stop_sequence": None},
                                 "usage": {"output_tokens": 1}}),
              ("message_stop", {"type": "message_stop"})]
    return (results[-1] if results else None), sse(events)


def responses(request, call):
    results = [item["output"] if isinstance(item["output"], str) else text_of(item["output"])
               for item in request["input"] if str(item.get("type", "")).endswith("_call_output")]
    usage = {"input_tokens": 1, "input_tokens_details": None, "output_tokens": 1, "output_tokens_details": None, "total_tokens": 2}
    if results:
        item = {"type": "message", "role": "assistant", "id": "m1", "content": [{"type": "output_text", "text": "done"}]}
    else:
        tool, arguments = call("responses")
        item = {"type": "function_call", "id": "f1", "call_id": "c1", "name": tool, "arguments": json.dumps(arguments)}
    events = [("response.created", {"type": "response.created", "response": {"id": "r1"}}),
              ("response.output_item.done", {"type": "response.output_item.done", "output_index": 0, "item": item}),
              ("response.completed", {"type": "response.completed", "response": {"id": "r1", "output": [item], "usage": usage}})]
    return (results[-1] if results else None), sse(events)


def gemini(request, call):
    parts = [part for content in request["contents"] for part in content.get("parts", [])]
    results = [json.dumps(part["functionResponse"]["response"]) for part in parts if "functionResponse" in part]
    tool, arguments = call("gemini")
    offered = [f["name"] for t in request.get("tools") or [] for f in t.get("functionDeclarations", [])]
    if results or tool not in offered:
        part = {"text": "done"}
    else:
        part = {"functionCall": {"name": tool, "args": arguments}}
    answer = {"candidates": [{"content": {"role": "model", "parts": [part]}, "finishReason": "STOP", "index": 0}],
              "usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2}}
    return (results[-1] if results else None), sse([(None, answer)])


def chat(request, call):
    results = [text_of(message["content"]) for message in request["messages"] if message["role"] == "tool"]
    tool, arguments = call("chat")
    message, why = {"role": "assistant", "content": "done"}, "stop"
    if not results and any(t.get("function", {}).get("name") == tool for t in request.get("tools") or []):
        function = {"name": tool, "arguments": json.dumps(arguments)}
        message = {"role": "assistant", "content": None, "tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": function}]}
        why = "tool_calls"
    base = {"id": "x", "created": 1, "model": request["model"]}
    if request.get("stream"):
        chunk = {**base, "object": "chat.completion.chunk"}
        answer = sse([(None, {**chunk, "choices": [{"index": 0, "delta": message, "finish_reason": None}]}),
                      (None, {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": why}],
                              "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}})]) + "data: [DONE]\n\n"
    else:
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        answer = json.dumps({**base, "object": "chat.completion", "usage": usage,
                             "choices": [{"index": 0, "message": message, "finish_reason": why}]})
    return (results[-1] if results else None), answer
