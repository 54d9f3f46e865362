// The theme switch, and sorting and filtering of tables. Without this script, tables show all rows in their first order.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

const theme = document.getElementById("theme");
const themes = ["system", "light", "dark"];
theme.hidden = false;
theme.addEventListener("click", () => {
  const next = themes[(themes.indexOf(theme.dataset.now || "system") + 1) % themes.length];
  theme.dataset.now = next;
  theme.textContent = `Theme: ${next}`;
  document.documentElement.style.colorScheme = next === "system" ? "light dark" : next;
});

const shown = () => document.querySelector("input[name=show]:checked").id.replace("show-", ".");
const number = (cell) => {
  if ("v" in cell.dataset) return cell.dataset.v === "" ? NaN : Number(cell.dataset.v);
  const text = (cell.querySelector(shown()) || cell).textContent;
  return Number.parseFloat(text.replace(/^[^\d–-]+/, ""));  // a mark may precede it
};

// Missing values stay at the end in either order.
function compare(a, b, text, sign) {
  if (text) return sign * a.textContent.localeCompare(b.textContent);
  const [x, y] = [number(a), number(b)];
  if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
  return sign * (x - y);
}

function sort(table, head) {
  const place = [...head.parentNode.children].indexOf(head);
  const text = head.dataset.kind === "text";
  const first = text || head.textContent.startsWith("Budget") ? "ascending" : "descending";
  const other = first === "ascending" ? "descending" : "ascending";
  const way = head.getAttribute("aria-sort") === first ? other : first;
  all("th[aria-sort]", table).forEach((it) => it.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", way);
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => compare(a.cells[place], b.cells[place], text, way === "ascending" ? 1 : -1));
  table.tBodies[0].append(...rows);
}

const scores = all("table.scores");
for (const table of scores) {
  for (const head of all("thead th", table)) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(table, head));
  }
}

const menus = all(".menu");
const chosen = (menu) => new Set(all("input:checked", menu).map((it) => it.value));

function filter() {
  const by = Object.fromEntries(menus.map((menu) => [menu.dataset.key, chosen(menu)]));
  let count = 0;
  let total = 0;
  for (const table of scores) {
    for (const row of table.tBodies[0].rows) {
      const stays = ["model", "method", "budget"].every((key) => by[key].has(row.dataset[key]));
      row.hidden = !stays;
      total += 1;
      count += stays;
    }
    for (const cell of all("[data-benchmark]", table)) cell.hidden = !by.benchmark.has(cell.dataset.benchmark);
  }
  for (const menu of menus) {
    const boxes = all("input", menu).length;
    const on = by[menu.dataset.key].size;
    menu.querySelector("summary b").textContent = on === boxes ? "all" : on === 1 ? menu.querySelector("input:checked").parentNode.textContent : `${on} of ${boxes}`;
  }
  document.getElementById("shown").textContent = count === total ? `${total} rows` : `${count} of ${total} rows`;
}

for (const menu of menus) {
  menu.hidden = false;
  menu.addEventListener("change", filter);
  menu.addEventListener("toggle", () => menu.open && menus.forEach((it) => it !== menu && (it.open = false)));
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !menu.open) return;
    menu.open = false;
    menu.querySelector("summary").focus();
  });
  for (const button of all("button", menu)) {
    button.addEventListener("click", () => {
      all("input", menu).forEach((box) => (box.checked = button.value === "all"));
      filter();
    });
  }
}
document.addEventListener("click", (event) => menus.forEach((it) => it.contains(event.target) || (it.open = false)));
filter();
