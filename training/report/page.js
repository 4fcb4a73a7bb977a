// Paints the charts in the reader's theme; lets a finger read values as a mouse does (Bokeh knows hovering only) and
// scroll the page; and, while a run goes on, shows its newest page to a reader who is not in the middle of something.

const dark = matchMedia('(prefers-color-scheme: dark)');
const models = () => Bokeh.documents.flatMap(doc => [...doc._all_models.values()]);

// A model's tags say which CSS variable colours which of its properties: "line_color:train".
function paint() {
  const style = getComputedStyle(document.documentElement);
  for (const model of models())
    for (const tag of model.tags) {
      const [property, variable] = tag.split(':');
      model[property] = style.getPropertyValue('--' + variable).trim();
    }
}
dark.addEventListener('change', paint);

// Where there is no mouse, dragging scrolls.
function charts_are_ready() {
  paint();
  if (matchMedia('(pointer: coarse)').matches)
    for (const doc of Bokeh.documents) for (const chart of doc.roots()) chart.toolbar.active_drag = null;
}

let pointer = 'mouse', last_used = Date.now();
for (const name of ['pointerdown', 'pointermove', 'wheel', 'scroll', 'keydown'])
  addEventListener(name, event => {
    last_used = Date.now();
    pointer = event.pointerType ?? pointer;
  }, {capture: true, passive: true});

// A tap moves an imagined mouse there, the next tap or scrolling takes it away.
let tapped = null;
const mouse = {pointerType: 'mouse', isPrimary: true, bubbles: true, composed: true, view: window};
function leave() {
  tapped?.dispatchEvent(new PointerEvent('pointerout', mouse));
  tapped = null;
}
addEventListener('scroll', leave, {capture: true, passive: true});
addEventListener('click', event => {
  const [target] = event.composedPath(), {clientX, clientY} = event;
  if (target.classList?.contains('bk-events')) target.blur();  // no frame around a chart
  if (pointer == 'mouse') return;
  leave();
  tapped = target;
  tapped.dispatchEvent(new PointerEvent('pointermove', {clientX, clientY, ...mouse}));
}, true);

if (document.documentElement.dataset.reloadSeconds)
  setInterval(() => {
    const idle_seconds = (Date.now() - last_used) / 1000;
    if (!document.hidden && idle_seconds > document.documentElement.dataset.reloadSeconds) location.reload();
  }, 1000);
