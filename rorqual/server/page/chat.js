"use strict";
const $ = id => document.getElementById(id);
let messages = [], model = "", running = null;

const make = (parent, tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text) node.textContent = text;
  parent.append(node);
  return node;
};
const headers = () => {
  const key = $("key").value.trim();
  return { "content-type": "application/json", ...(key ? { authorization: "Bearer " + key } : {}) };
};
const number = id => { const value = $(id).value.trim(); return value === "" ? undefined : Number(value); };

async function findModel() {
  try {
    const answer = await fetch("/v1/models", { headers: headers() });
    if (!answer.ok) { $("model").textContent = answer.status === 401 ? "needs an API key (Settings)" : "not ready"; return; }
    model = (await answer.json()).data[0].id;
    $("model").textContent = model;
  } catch { $("model").textContent = "no connection"; }
}

// A token goes into a text node of its own kind: plain, or a mark where it was an accepted draft.
function write(parent, text, draft) {
  if (!text) return;
  const last = parent.lastChild, tag = draft ? "MARK" : "SPAN";
  if (last && last.nodeName === tag) last.firstChild.appendData(text);
  else make(parent, tag.toLowerCase(), "", text);
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
  }
}

async function answer() {
  const talk = $("talk"), card = make(talk, "article", "assistant"), began = performance.now();
  const fold = make(card, "details"), summary = make(fold, "summary", "", "Reasoning"), thought = make(fold, "div");
  fold.hidden = true;
  const said = make(card, "div"), foot = make(card, "footer");
  const system = $("system").value.trim(), stop = new AbortController();
  const state = { content: "", tokens: 0, drafts: 0, first: 0, reason: "" };
  running = stop;
  $("stop").hidden = false; $("send").hidden = true;
  const show = () => {
    const steps = state.tokens - state.drafts, seconds = (performance.now() - state.first) / 1000;
    const speed = state.tokens > 1 && seconds > 0 ? (state.tokens / seconds).toFixed(1) + " tokens/s" : "";
    const kept = state.drafts ? ", " + (state.tokens / Math.max(1, steps)).toFixed(2) + " tokens per step, a draft accepted in " + Math.round(100 * state.drafts / Math.max(1, steps)) + "% of steps" : "";
    $("speed").textContent = speed + kept;
    foot.textContent = state.tokens + " tokens" + (speed ? ", " + speed : "") + kept + (state.reason === "length" ? ", cut by the length limit" : "");
  };
  // Layout and figures once a frame, however many tokens come in it.
  let near = true, waiting = false, over = false;
  const frame = () => { waiting = false; if (over) return; show(); if (near) talk.scrollTop = talk.scrollHeight; };
  try {
    const request = {
      model: model || undefined, stream: true, return_drafts: true, messages: [...(system ? [{ role: "system", content: system }] : []), ...messages],
      temperature: number("temperature"), top_p: number("top_p"), max_tokens: number("max_tokens"), seed: number("seed"),
      chat_template_kwargs: $("thinking").checked ? { thinking: true } : undefined,
    };
    const got = await fetch("/v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify(request), signal: stop.signal });
    if (!got.ok) throw new Error((await got.json()).error.message);
    for await (const chunk of events(got.body)) {
      if (chunk.error) throw new Error(chunk.error.message);
      const choice = chunk.choices[0];
      if (!choice) continue;
      const delta = choice.delta;
      if (!waiting) {
        near = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 80;
        waiting = true;
        requestAnimationFrame(frame);
      }
      if ("draft" in choice) { state.tokens += 1; state.drafts += choice.draft ? 1 : 0; state.first ||= performance.now(); }
      if (delta.reasoning_content) { fold.hidden = false; write(thought, delta.reasoning_content, choice.draft); }
      if (delta.content) { state.content += delta.content; write(said, delta.content, choice.draft); }
      for (const call of delta.tool_calls || []) write(said, (call.function.name ? "\n" + call.function.name + " " : "") + (call.function.arguments || ""), choice.draft);
      if (choice.finish_reason) state.reason = choice.finish_reason;
    }
    frame();
    over = true;
  } catch (error) {
    frame();
    over = true;
    if (error.name === "AbortError") foot.textContent = "stopped";
    else { make(card, "p", "error", error.message); card.classList.add("error"); }
  }
  if (state.content) messages.push({ role: "assistant", content: state.content });
  running = null;
  $("stop").hidden = true; $("send").hidden = false;
  document.body.dataset.answers = String(Number(document.body.dataset.answers || 0) + 1);
}

$("ask").addEventListener("submit", event => {
  event.preventDefault();
  const text = $("text").value;
  if (!text.trim() || running) return;
  $("text").value = "";
  messages.push({ role: "user", content: text });
  make($("talk"), "article", "user", text);
  answer();
});
$("text").addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("ask").requestSubmit(); }
});
$("stop").addEventListener("click", () => running && running.abort());
$("new").addEventListener("click", () => { if (running) running.abort(); messages = []; $("talk").replaceChildren(); $("speed").textContent = ""; });
$("tint").addEventListener("change", event => document.body.classList.toggle("tint", event.target.checked));
$("key").addEventListener("change", findModel);
findModel();
