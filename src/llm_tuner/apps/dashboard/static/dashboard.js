"use strict";
// Operations by POST, plans in a dialog, parts of a page that are asked for again. Without it every page can be read.
(() => {
  const main = document.querySelector("main"), said = document.querySelector("#said"), words = document.body.dataset;

  function say(text, failed, link) {
    if (!said) return;
    const box = document.createElement("div");
    box.className = failed ? "failed" : "";
    box.textContent = text + " ";
    if (link) { const a = document.createElement("a"); a.href = link; a.textContent = words.details; box.append(a); }
    said.append(box);
    while (said.children.length > 4) said.firstChild.remove();
    if (!failed) setTimeout(() => box.remove(), 12000);
    return box;
  }

  async function post(path, body) {
    const answer = await fetch(path, {
      method: "POST", headers: { "content-type": "application/json", "x-llm-tuner": "1" }, body: JSON.stringify(body),
    });
    const value = await answer.json().catch(() => ({ error: answer.statusText }));
    if (!answer.ok) throw new Error(value && value.error || answer.statusText);
    return { value, job: answer.status === 202 };
  }

  function agree(sentences) {
    return new Promise((resolve) => {
      const dialog = document.querySelector("#plan");
      dialog.querySelector("ul").replaceChildren(...sentences.map((text) => {
        const li = document.createElement("li"); li.textContent = text; return li;
      }));
      dialog.returnValue = "no";
      dialog.onclose = () => resolve(dialog.returnValue === "yes");
      dialog.showModal();
      dialog.querySelector("[value=no]").focus();
    });
  }

  async function perform(name, given, destroys, show) {
    if (destroys) {
      const plan = await post("/api/operations/" + name, { ...given, confirm: false });
      if (plan.job) { await follow(plan.value, show); return; }
      if (!await agree(plan.value.sentences || [])) return;
      given = { ...given, confirm: true };
    }
    const { value, job } = await post("/api/operations/" + name, given);
    if (job) { await follow(value, show); return; }
    show(value.sentences ? value.sentences.join("\n") : JSON.stringify(value, null, 1), false);
    await refresh();
  }

  function follow(job, show) {
    return new Promise((resolve) => {
      const link = "/jobs/" + job.id;
      show(words.working, false, link);
      const source = new EventSource("/api/jobs/" + job.id + "/events");
      source.addEventListener("progress", (event) => {
        const e = JSON.parse(event.data);
        show(e.step + ": " + e.message + (e.total ? "  " + Math.round(e.done) + "/" + Math.round(e.total) + " " + e.unit : ""), false, link);
      });
      source.addEventListener("end", (event) => {
        source.close();
        const end = JSON.parse(event.data);
        show(end.state === "done" ? JSON.stringify(end.result, null, 1) : end.error || end.state, end.state === "failed", link);
        refresh(); resolve();
      });
    });
  }

  document.addEventListener("click", async (event) => {
    const stop = event.target.closest("[data-cancel]");
    if (stop) { stop.disabled = true; try { await post("/api/jobs/" + stop.dataset.cancel + "/cancel", {}); } catch (e) { say(e.message, true); } return; }
    const button = event.target.closest("button[data-operation]");
    if (!button || button.ariaBusy) return;
    button.ariaBusy = "true"; // not disabled: the focus stays
    let box;
    try {
      await perform(button.dataset.operation, JSON.parse(button.dataset.arguments || "{}"), button.dataset.effect === "destroys",
        (text, failed, link) => { if (box) box.remove(); box = say(text, failed, link); });
    } catch (e) { say(e.message, true); }
    button.ariaBusy = null;
  });

  const form = document.querySelector("form[data-operation]");
  if (form) form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const given = {};
    for (const field of form.querySelectorAll("[data-kind]")) {
      const kind = field.dataset.kind, text = field.value;
      if (kind === "yes") given[field.name] = field.checked;
      else if (text === "" && !field.required) continue;
      else if (kind === "whole" || kind === "number") given[field.name] = Number(text);
      else if (kind === "lines") given[field.name] = text.split("\n").map((one) => one.trim()).filter(Boolean);
      else given[field.name] = text;
    }
    const go = form.querySelector("button"), out = document.querySelector("#result"), state = document.querySelector("#result-state");
    const show = (text, failed, link) => {
      out.hidden = false; out.textContent = text; state.textContent = failed ? words.failed : "";
      const a = document.querySelector("#result-link"); a.hidden = !link; if (link) a.href = link;
    };
    if (go.ariaBusy) return;
    go.ariaBusy = "true"; show(words.working);
    try { await perform(form.dataset.operation, given, form.dataset.effect === "destroys", show); }
    catch (e) { show(e.message, true); }
    if (out.textContent === words.working) out.hidden = true;
    go.ariaBusy = null;
  });

  const here = document.querySelector("nav.main [aria-current]");
  if (here) here.parentElement.scrollLeft = here.offsetLeft - here.parentElement.offsetLeft - 40;

  // A page that is not whole yet, or lives, says after how many milliseconds it wants to be asked again.
  let timer, missed = 0;
  async function refresh() {
    clearTimeout(timer);
    if (form) return;
    const url = new URL(location.href);
    url.searchParams.set("part", "1");
    try {
      const answer = await fetch(url);
      if (answer.ok && answer.headers.get("x-again") !== null) {
        const text = await answer.text(), busy = main.contains(document.activeElement) && document.activeElement !== main;
        const open = [...main.querySelectorAll("details")].map((one) => one.open), across = [...main.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
        if (!(busy && document.activeElement.matches("input,select,textarea"))) {
          const place = busy ? [...main.querySelectorAll("a,button,summary,[tabindex]")].indexOf(document.activeElement) : -1;
          main.innerHTML = text;
          main.querySelectorAll("details").forEach((one, i) => { if (i < open.length) one.open = open[i]; });
          main.querySelectorAll(".scroll").forEach((one, i) => { one.scrollLeft = across[i] || 0; });
          const again = place < 0 ? null : main.querySelectorAll("a,button,summary,[tabindex]")[place];
          if (again) again.focus({ preventScroll: true });
        }
        missed = 0; wait(Number(answer.headers.get("x-again")));
        return;
      }
    } catch (e) { /* the dashboard may be starting again */ }
    missed += 1;
    if (missed < 20) wait(3000);
  }
  function wait(ms) { if (ms) timer = setTimeout(() => document.hidden ? wait(ms) : refresh(), ms); }
  wait(Number(main.dataset.again));
})();
