"use strict";
(() => {
  const PAUSE = 1000; // milliseconds
  const note = document.getElementById("live");
  let version = note.dataset.version;
  let changed = new Date();

  // Change a node of this page into that of a newer page. What did not change stays as the reader left it: scroll
  // positions, selections, unfolded prompts. page.js fills the parts that are marked as drawn.
  const morph = (now, next) => {
    if (now.nodeType !== Node.ELEMENT_NODE) {
      if (now.data !== next.data) now.data = next.data;
      return;
    }
    if (now.hasAttribute("data-drawn")) return;
    for (const { name } of [...now.attributes]) {
      if (name !== "open" && !next.hasAttribute(name)) now.removeAttribute(name);
    }
    for (const { name, value } of next.attributes) {
      if (now.getAttribute(name) !== value) now.setAttribute(name, value);
    }
    let place = now.firstChild;
    for (const child of [...next.childNodes]) {
      const known = child.id ? now.querySelector(`:scope > #${CSS.escape(child.id)}`) : place;
      if (!known || known.nodeName !== child.nodeName || known.id !== child.id) {
        now.insertBefore(child, place);
        continue;
      }
      if (known === place) place = place.nextSibling;
      else now.insertBefore(known, place);
      morph(known, child);
    }
    while (place) {
      const after = place.nextSibling;
      place.remove();
      place = after;
    }
  };

  const get = async (path) => {
    const answer = await fetch(path, { cache: "no-store" });
    if (!answer.ok) throw new Error(`${await answer.text()}`.trim());
    return answer;
  };

  const refresh = async () => {
    const next = new DOMParser().parseFromString(await (await get("/")).text(), "text/html");
    morph(document.querySelector("main"), next.querySelector("main"));
    document.title = next.title;
    version = next.getElementById("live").dataset.version;
    changed = new Date();
    document.dispatchEvent(new Event("report"));
  };

  const look = async () => {
    let text;
    try {
      const moment = await (await get("/version")).json();
      if (moment.version !== version) await refresh();
      text = `${moment.status} · updated ${changed.toLocaleTimeString()}`;
    } catch (error) {
      const lost = error instanceof TypeError; // of fetch
      text = lost ? "esplug report --watch has stopped; trying again" : `trying again: ${error.message}`;
    }
    if (note.textContent !== text) note.textContent = text;
    setTimeout(look, PAUSE);
  };
  look();
})();
