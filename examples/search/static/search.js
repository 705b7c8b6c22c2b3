// Answers the search form in place. Without it the form loads the page anew, with the same hits.

export function searchInPlace(form, told, list) {
  let current = new AbortController();
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    current.abort();
    const mine = (current = new AbortController());
    const query = new URLSearchParams({ q: form.elements.q.value });
    const begun = performance.now();
    try {
      const response = await fetch(`/search?${query}`, { signal: mine.signal });
      const answer = await response.json();
      if (mine !== current) return;
      list.replaceChildren(...(answer.hits ?? []).map(itemOf));
      told.textContent = response.ok ? summary(answer.hits.length, performance.now() - begun) : answer.error;
      history.replaceState(null, "", `/?${query}`);
    } catch (error) {
      if (mine === current) told.textContent = `No answer: ${error.message}`;
    }
  });
}

function summary(count, milliseconds) {
  if (count === 0) return "Nothing in the library is like that.";
  return `${count} hits in ${milliseconds.toFixed(0)} ms`;
}

function itemOf(hit) {
  const item = document.createElement("li");
  const code = item.appendChild(document.createElement("code"));
  code.appendChild(document.createElement("b")).textContent = hit.name;
  code.append(hit.signature);
  item.appendChild(document.createElement("p")).textContent = hit.summary;
  const where = item.appendChild(document.createElement("p"));
  where.className = "quiet";
  where.textContent = `${hit.kind}, line ${hit.line}, similarity ${hit.score.toFixed(3)}`;
  return item;
}
