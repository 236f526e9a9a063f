"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PANELS_AT_ONCE = innerWidth < 640 ? 4 : 12;
  const MOST_TICKS = 24;
  const INK = "#20242a";
  const SHAPES = {
    o: "circle", s: "square", D: "diamond", d: "diamond-tall", "^": "triangle-up", v: "triangle-down",
    "<": "triangle-left", ">": "triangle-right", P: "cross", X: "x", "*": "star", p: "pentagon", h: "hexagon",
    8: "octagon",
  };
  // Corners of the same markers in a square of 12, for legends; a circle has none.
  const CORNERS = {
    s: "2,2 10,2 10,10 2,10", D: "6,0.5 11.5,6 6,11.5 0.5,6", d: "6,0.5 9.5,6 6,11.5 2.5,6", "^": "6,1 11,10.5 1,10.5",
    v: "1,1.5 11,1.5 6,11", "<": "1,6 10.5,1 10.5,11", ">": "1.5,1 11,6 1.5,11",
    P: "4.5,1 7.5,1 7.5,4.5 11,4.5 11,7.5 7.5,7.5 7.5,11 4.5,11 4.5,7.5 1,7.5 1,4.5 4.5,4.5",
    X: "3,1 6,4 9,1 11,3 8,6 11,9 9,11 6,8 3,11 1,9 4,6 1,3",
    "*": "6,0.5 7.5,4.3 11.5,4.5 8.4,7 9.4,11 6,8.8 2.6,11 3.6,7 0.5,4.5 4.5,4.3",
    p: "6,0.8 11.3,4.7 9.3,10.8 2.7,10.8 0.7,4.7", h: "6,0.5 10.8,3.2 10.8,8.8 6,11.5 1.2,8.8 1.2,3.2",
    8: "3.8,0.8 8.2,0.8 11.2,3.8 11.2,8.2 8.2,11.2 3.8,11.2 0.8,8.2 0.8,3.8",
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const state = { hidden: new Set(), factors: data.factors.map(() => ""), words: "" };

  const make = (tag, properties = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  };
  const theme = () => {
    const style = getComputedStyle(document.documentElement);
    return (name) => style.getPropertyValue(name).trim();
  };
  // Colors chosen for white paper are lightened on a dark page.
  const tone = (color, share = 0.32) => {
    if (color === INK) return theme()("--ink");
    if (!dark.matches) return color;
    const mix = (at) => {
      const value = parseInt(color.slice(at, at + 2), 16);
      return Math.round(value + (255 - value) * share).toString(16).padStart(2, "0");
    };
    return `#${mix(1)}${mix(3)}${mix(5)}`;
  };
  const faint = (color) => `${tone(color)}2e`;
  const show = (value) => (value === null || value === undefined ? "-" : Number(value.toPrecision(4)).toString());

  // Points of no cell of the study are shown as long as no cell is chosen.
  const isShown = (cell) => (cell in data.cells
    ? data.cells[cell].factors.every((value, i) => !state.factors[i] || value === state.factors[i])
    : state.factors.every((value) => !value));
  // A panel measured once for several measurements of a cell is shown if one of them is.
  const isPanelShown = ({ cell, told }) => {
    if (!cell || cell in data.cells) return !cell || isShown(cell);
    const isOf = (key) => key.startsWith(cell) && told.every(([name, value]) => {
      const at = data.factors.findIndex((factor) => factor.name === name.replaceAll("_", " "));
      return at < 0 || data.cells[key].factors[at] === value;
    });
    return Object.keys(data.cells).some((key) => isOf(key) && isShown(key));
  };

  // The lines of a panel without hidden paths and without points of cells that are filtered out.
  const shownLines = (panel) => {
    if (!isPanelShown(panel)) return [];
    return panel.lines.filter((line) => !line.path || !state.hidden.has(line.path)).map((line) => {
      if (!line.cells.length) return line;
      const kept = line.x.map((_, i) => i).filter((i) => isShown(line.cells[i]));
      const pick = (values) => (values.length ? kept.map((i) => values[i]) : values);
      const names = ["x", "y", "x_low", "x_high", "y_low", "y_high", "cells", "notes"];
      return { ...line, ...Object.fromEntries(names.map((name) => [name, pick(line[name])])) };
    }).filter((line) => line.x.length);
  };
  // Published points are shown only beside ours.
  const isWorthIt = (lines) => lines.some((line) => !(line.notes[0] || "").startsWith("published"));

  const placeName = (axis, value) => {
    // Points have a small offset, so that bars do not cover each other.
    if (axis.is_whole) return show(Math.round(value));
    const off = ([place]) => Math.abs(axis.scale === "linear" ? place - value : Math.log2(place / value));
    const [nearest] = [...axis.ticks].sort((a, b) => off(a) - off(b));
    return nearest && off(nearest) < 0.45 ? nearest[1] : show(value);
  };

  const hover = (panel, line, i) => {
    const interval = line.y_low.length && line.y_low[i] !== line.y_high[i]
      ? ` [${show(line.y_low[i])}, ${show(line.y_high[i])}]` : "";
    const cell = data.cells[line.cells[i]]?.label;
    const parts = [`${panel.y.title}: ${show(line.y[i])}${interval}`];
    if (panel.x.title) parts.push(`${panel.x.title}: ${placeName(panel.x, line.x[i])}`);
    if (cell) parts.push(cell);
    if (line.notes.length) parts.push(...line.notes[i].split("; "));
    return [`<b>${escapeText(line.path || line.label)}</b>`, ...parts.map(escapeText)].join("<br>");
  };
  const escapeText = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  const traces = (panel, lines) => {
    const drawn = [];
    for (const line of lines) {
      const color = tone(line.color);
      if (line.is_band) {
        drawn.push({
          x: [...line.x, ...[...line.x].reverse()], y: [...line.y_high, ...[...line.y_low].reverse()],
          fill: "toself", fillcolor: faint(line.color), line: { width: 0 }, mode: "lines", hoverinfo: "skip", type: "scatter",
        });
      }
      const reach = (values, ends) => ends.map((end, i) => (end === null || values[i] === null ? 0 : Math.abs(end - values[i])));
      const bars = (values, low, high) => ({
        type: "data", symmetric: false, array: reach(values, high), arrayminus: reach(values, low),
        color, thickness: 1.1, width: 3,
      });
      const suffix = { full: "", none: "-open", bottom: "-open-dot" }[line.fill];
      drawn.push({
        x: line.x, y: line.y, type: "scatter", connectgaps: false,
        mode: [line.is_joined ? "lines" : "", line.marker || line.x.length === 1 ? "markers" : ""].filter(Boolean).join("+") || "markers",
        line: { color, width: line.width + 0.3, dash: { solid: "solid", dash: "dash", dot: "dot" }[line.dash] },
        marker: { color, size: line.fill === "none" ? 10 : 7, symbol: (SHAPES[line.marker] || "circle") + suffix },
        ...(line.y_low.length && !line.is_band ? { error_y: bars(line.y, line.y_low, line.y_high) } : {}),
        ...(line.x_low.length ? { error_x: bars(line.x, line.x_low, line.x_high) } : {}),
        text: line.x.map((_, i) => hover(panel, line, i)), hovertemplate: "%{text}<extra></extra>",
      });
    }
    return drawn;
  };

  // 1, 2 and 5 of every decade; only 1 if there are many decades.
  const roundNumbers = (least, most) => {
    const found = [];
    for (let decade = Math.floor(Math.log10(least)); decade <= Math.log10(most); decade += 1) {
      for (const digit of most < 300 * least ? [1, 2, 5] : [1]) {
        const value = Number(`${digit}e${decade}`);
        if (value >= least && value <= most) found.push(value);
      }
    }
    return found;
  };

  const axisOf = (axis, look, furthest) => {
    const drawn = {
      title: { text: escapeText(axis.title), standoff: 6 }, gridcolor: look("--grid"), linecolor: look("--line"),
      zeroline: false, automargin: true, ticks: "", fixedrange: false,
    };
    const log = (value) => Math.log10(value);
    if (axis.scale !== "linear") drawn.type = "log";
    if (axis.scale === "log") {
      drawn.tickvals = roundNumbers(...axis.limits);
      drawn.ticktext = drawn.tickvals.map(show);
    }
    if (axis.limits) drawn.range = axis.scale === "linear" ? axis.limits : axis.limits.map(log);
    if (axis.ticks.length) {
      const step = Math.ceil(axis.ticks.length / MOST_TICKS);
      const kept = axis.ticks.filter((_, i) => i % step === 0);
      drawn.tickvals = kept.map(([place]) => place);
      drawn.ticktext = kept.map(([, label]) => escapeText(label));
      if (axis.scale === "linear" && !axis.limits) drawn.range = [axis.ticks[0][0] - 0.3, axis.ticks.at(-1)[0] + 0.3];
    }
    if (axis.is_whole) Object.assign(drawn, { tick0: 1, dtick: Math.max(1, Math.ceil(furthest / 8)) });
    if (axis.is_turned) drawn.tickangle = -60;
    return drawn;
  };

  const layoutOf = (panel, lines) => {
    const look = theme();
    const furthest = Math.max(...lines.flatMap((line) => line.x));
    return {
      margin: { l: 46, r: 10, t: 8, b: 38 }, showlegend: false, hovermode: "closest",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 11.5, color: look("--soft") },
      hoverlabel: { bgcolor: look("--paper"), bordercolor: look("--line"), font: { color: look("--ink"), size: 12 }, align: "left" },
      xaxis: axisOf(panel.x, look, furthest), yaxis: axisOf(panel.y, look),
      shapes: panel.has_diagonal ? [diagonal(panel, look)] : [],
    };
  };
  const diagonal = (panel, look) => ({
    type: "line", layer: "below", line: { color: look("--ink"), width: 1, dash: "dot" },
    x0: panel.x.limits[0], x1: panel.x.limits[1], y0: panel.x.limits[0], y1: panel.x.limits[1],
  });
  const CONFIG = {
    responsive: true, displaylogo: false,
    // Without hovering, the buttons would always cover points.
    ...(matchMedia("(hover: none)").matches ? { displayModeBar: false } : {}),
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };

  const svg = (tag, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };
  const swatch = ({ color, marker, fill, dash, is_joined: isJoined, is_band: isBand }) => {
    const picture = svg("svg", { width: 26, height: 12, class: "swatch", "aria-hidden": "true" });
    const tint = tone(color);
    if (isBand) picture.append(svg("rect", { x: 0, y: 1, width: 26, height: 10, fill: faint(color) }));
    if (isJoined !== false) {
      const pattern = { dash: "5 3", dot: "2 2" }[dash] || "";
      picture.append(svg("line", { x1: 0, x2: 26, y1: 6, y2: 6, stroke: tint, "stroke-width": 2, "stroke-dasharray": pattern }));
    }
    if (marker) {
      const paint = { fill: fill && fill !== "full" ? "none" : tint, stroke: tint, "stroke-width": 1.3 };
      picture.append(CORNERS[marker]
        ? svg("polygon", { points: CORNERS[marker], transform: "translate(7 0)", ...paint })
        : svg("circle", { cx: 13, cy: 6, r: 4.4, ...paint }));
    }
    return picture;
  };

  class Section {
    constructor(node, charts) {
      this.node = node;
      this.charts = charts;
      this.choice = [...charts[0].choice];
      this.first = 0;
      this.isStale = true;
      this.isNear = false;
      this.find = (selector) => node.querySelector(selector);
      this.makeChoices();
      this.find(".previous").onclick = () => this.turn(-PANELS_AT_ONCE);
      this.find(".next").onclick = () => this.turn(PANELS_AT_ONCE);
    }

    makeChoices() {
      ["", "against"].forEach((word, at) => {
        const values = [...new Set(this.charts.map((chart) => chart.choice[at]).filter(Boolean))];
        if (values.length < 2) return;
        const select = make("select", { ariaLabel: word || "metric" }, ...values.map((value) => make("option", { value, textContent: value })));
        select.onchange = () => {
          this.choice[at] = select.value;
          this.first = 0;
          this.draw();
        };
        this.find(".choices").append(make("label", {}, word, select));
      });
    }

    get chart() {
      return this.charts.find((chart) => chart.choice.every((word, i) => word === this.choice[i])) || this.charts[0];
    }

    turn(by) {
      this.first += by;
      this.draw();
    }

    update() {
      this.first = 0;
      this.isStale = true;
      if (this.isNear) this.draw();
    }

    relayout() {
      const panels = this.find(".panels");
      const plots = panels.querySelectorAll(".plot");
      if (!plots.length) return;
      panels.style.setProperty("--columns", this.countColumns(plots.length));
      plots.forEach((plot) => Plotly.Plots.resize(plot));
    }

    draw() {
      this.isStale = false;
      const shown = this.chart.panels.map((panel) => [panel, shownLines(panel)]).filter(([, lines]) => isWorthIt(lines));
      const some = shown.slice(this.first, this.first + PANELS_AT_ONCE);
      const panels = this.find(".panels");
      panels.style.setProperty("--columns", this.countColumns(some.length));
      panels.classList.toggle("few", some.length < 5);
      while (panels.children.length > some.length || panels.querySelector(".none")) {
        const last = panels.lastChild;
        const plot = last.querySelector(".plot");
        if (plot) Plotly.purge(plot);
        last.remove();
      }
      some.forEach(([panel, lines], i) => {
        if (!panels.children[i]) panels.append(make("figure", { className: "panel" }, make("h3"), make("div", { className: "plot" })));
        const figure = panels.children[i];
        figure.firstChild.textContent = panel.title;
        figure.setAttribute("aria-label", `${panel.y.title} ${panel.title}`);
        Plotly.react(figure.lastChild, traces(panel, lines), layoutOf(panel, lines), CONFIG);
      });
      if (!some.length) panels.append(make("p", { className: "none", textContent: "Nothing to show: choose other cells or paths above." }));
      const pager = this.find(".pager");
      pager.hidden = shown.length <= PANELS_AT_ONCE;
      this.find(".bar").hidden = pager.hidden && !this.find("select");
      this.find(".place").textContent = `${this.first + 1} to ${this.first + some.length} of ${shown.length}`;
      this.find(".previous").disabled = this.first === 0;
      this.find(".next").disabled = this.first + PANELS_AT_ONCE >= shown.length;
      this.drawLegend(some);
    }

    // As many as fit, but few enough that the last row is about as full as the others.
    countColumns(n) {
      const least = this.chart.n_columns > 3 ? 250 : this.chart.n_columns > 2 ? 330 : 420;
      const most = Math.max(1, Math.floor((this.find(".panels").clientWidth + 16) / (least + 16)));
      return Math.max(1, Math.ceil(n / Math.ceil(n / most)));
    }

    drawLegend(some) {
      const entries = new Map();
      for (const [panel, lines] of some) {
        // A line without points has only an entry in the legend.
        const entitled = [...lines, ...panel.lines.filter((line) => !line.x.length && !line.path)];
        for (const line of entitled.filter(({ label }) => label)) {
          const known = entries.get(line.label);
          // An entry of several colors is distinguished by its marker.
          entries.set(line.label, !known ? line : known.color === line.color ? known : { ...known, color: INK });
        }
        if (panel.has_diagonal) entries.set("equal", { color: INK, dash: "dot" });
      }
      this.find(".legend").replaceChildren(...[...entries].map(([label, line]) => make("span", {}, swatch(line), label)));
    }
  }

  const sections = Object.entries(data.sections).map(([name, charts]) => new Section(document.getElementById(`figure-${name}`), charts));
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const section = sections.find(({ node }) => node === entry.target);
      section.isNear = entry.isIntersecting;
      if (section.isNear && section.isStale) section.draw();
    }
  }, { rootMargin: "300px" });
  sections.forEach(({ node }) => watcher.observe(node));

  const table = document.getElementById("rows");
  const rows = [...table.tBodies[0].rows];
  const filterRows = () => {
    const words = state.words.toLowerCase().split(/\s+/).filter(Boolean);
    let n = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = state.hidden.has(row.dataset.path) || !isShown(row.dataset.cell) || !words.every((word) => text.includes(word));
      n += !row.hidden;
    }
    document.getElementById("count").textContent = n === rows.length ? `${n} rows` : `${n} of ${rows.length} rows`;
  };
  const update = () => {
    filterRows();
    sections.forEach((section) => section.update());
  };

  // Numbers sort by size, intervals by their mean; missing values come last.
  const key = (text) => (/^[+-]?\d/.test(text) ? parseFloat(text) : null);
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x !== null && y !== null) return x - y;
    return a.localeCompare(b, undefined, { numeric: true });
  };
  for (const sortable of document.querySelectorAll("table.sortable")) {
    const heads = [...sortable.tHead.rows[0].cells];
    const sort = (head, at) => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const text = (row) => row.cells[at].textContent;
      const ordered = [...sortable.tBodies[0].rows].sort((a, b) => {
        if ((text(a) === "-") !== (text(b) === "-")) return text(a) === "-" ? 1 : -1;
        return (descending ? -1 : 1) * compare(text(a), text(b));
      });
      sortable.classList.add("sorted");
      sortable.tBodies[0].append(...ordered);
    };
    heads.forEach((head, at) => {
      head.tabIndex = 0;
      head.onclick = () => sort(head, at);
      head.onkeydown = (event) => {
        if (event.key === "Enter" || event.key === " ") {
          event.preventDefault();
          sort(head, at);
        }
      };
    });
  }

  const lineOf = (path) => Object.values(data.sections).flat().flatMap((chart) => chart.panels)
    .flatMap((panel) => panel.lines).find((line) => line.path === path && line.marker && line.fill === "full");
  const drawPaths = () => {
    document.getElementById("paths").replaceChildren(...data.paths.map(({ label, color }) => {
      const chip = make("button", { type: "button", ariaPressed: String(!state.hidden.has(label)) },
        swatch({ color, marker: lineOf(label)?.marker }), label);
      chip.onclick = () => {
        if (!state.hidden.delete(label)) state.hidden.add(label);
        chip.ariaPressed = String(!state.hidden.has(label));
        update();
      };
      return chip;
    }));
  };
  const drawFactors = () => {
    const selects = data.factors.map(({ name, values }, i) => {
      const select = make("select", {}, make("option", { value: "", textContent: "all" }),
        ...values.map((value) => make("option", { value, textContent: value })));
      select.dataset.factor = name;
      select.onchange = () => {
        state.factors[i] = select.value;
        update();
      };
      return make("label", {}, name, select);
    });
    const search = make("input", { type: "search", placeholder: "words in the table", ariaLabel: "Words in the table" });
    search.oninput = () => {
      state.words = search.value;
      filterRows();
    };
    const reset = make("button", { type: "button", id: "reset", textContent: "show all" });
    reset.onclick = () => {
      state.hidden.clear();
      state.factors.fill("");
      state.words = search.value = "";
      document.querySelectorAll("#factors select").forEach((select) => (select.value = ""));
      drawPaths();
      update();
    };
    document.getElementById("factors").replaceChildren(...selects, search, reset);
  };
  drawPaths();
  drawFactors();
  document.getElementById("filters").hidden = false;
  filterRows();
  let width = innerWidth;
  addEventListener("resize", () => {
    // Plots resize themselves; only the number of columns may change.
    if (width === innerWidth) return;
    width = innerWidth;
    sections.forEach((section) => section.relayout());
  });
  dark.addEventListener("change", () => {
    drawPaths();
    sections.forEach((section) => section.update());
  });
})();
