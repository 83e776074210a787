// Numbers under the pointer. The page says everything else without it.
const tip = document.createElement('div');
tip.id = 'tip';
document.body.appendChild(tip);
const show = (text, x, y) => {
  tip.textContent = text;
  tip.style.display = 'block';
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(x + 14, innerWidth - box.width - 4)) + 'px';
  tip.style.top = Math.max(4, Math.min(y + 14, innerHeight - box.height - 4)) + 'px';
};
const hide = () => { tip.style.display = 'none'; };
const words = (x) => (Math.abs(x) >= 1000 ? x.toFixed(0) : x.toPrecision(3));
for (const svg of document.querySelectorAll('svg.plot')) {
  const [x0, x1, left, right] = svg.dataset.x.split(' ').map(Number);
  const [y0, y1, bottom, top] = svg.dataset.y.split(' ').map(Number);
  const lines = [...svg.querySelectorAll('polyline[data-name]')].map((line) => ({
    name: line.dataset.name,
    points: line.getAttribute('points').split(' ').map((p) => p.split(',').map(Number)),
  }));
  const move = (event) => {
    const box = svg.getBoundingClientRect();
    const at = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    const near = lines.map((line) => {
      const point = line.points.reduce((a, b) => (Math.abs(b[0] - at) >= Math.abs(a[0] - at) ? a : b));
      return { name: line.name, x: point[0], y: y0 + (y1 - y0) * (point[1] - bottom) / (top - bottom) };
    });
    const closest = near.reduce((a, b) => (Math.abs(b.x - at) >= Math.abs(a.x - at) ? a : b)).x;
    const place = x0 + (x1 - x0) * (closest - left) / (right - left);
    const rows = near.sort((a, b) => b.y - a.y).map((n) => words(n.y) + '  ' + n.name);
    show(['at ' + words(place), ...rows].join('\n'), event.clientX, event.clientY);
  };
  svg.addEventListener('pointermove', move);
  svg.addEventListener('pointerdown', move);
  svg.addEventListener('pointerleave', hide);
  // The browser's own titles would cover the numbers.
  svg.querySelectorAll('title').forEach((title) => title.remove());
}
for (const tokens of document.querySelectorAll('.tokens')) {
  const over = (event) => {
    const token = event.target.closest('i');
    if (!token) { hide(); return; }
    if (token.title) { token.dataset.title = token.title; token.removeAttribute('title'); }
    show(token.dataset.title.replaceAll(', ', '\n'), event.clientX, event.clientY);
  };
  tokens.addEventListener('pointerover', over);
  tokens.addEventListener('pointerdown', over);
  tokens.addEventListener('pointerleave', hide);
}
