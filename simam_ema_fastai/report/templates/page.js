// Tables sort by their headings, commands can be copied, a name in a legend stands out in the figures, and what is folded is
// printed. Without JavaScript they are tables, text and a legend.

const numberIn = text => parseFloat(text.replace('−', '-').replace(/[,\s]/g, ''))

function compareCells(a, b) { // numbers before text
  const [x, y] = [numberIn(a), numberIn(b)]
  if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y) || a.localeCompare(b)
  return x - y
}

function sortByColumn(table, th, column) {
  const ascending = th.getAttribute('aria-sort') !== 'ascending'
  for (const other of table.querySelectorAll('th[aria-sort]')) other.removeAttribute('aria-sort')
  th.setAttribute('aria-sort', ascending ? 'ascending' : 'descending')
  const text = row => row.cells[column].innerText.trim()
  const compare = (a, b) => compareCells(text(a), text(b))
  const body = table.tBodies[0]
  body.append(...[...body.rows].sort((a, b) => ascending ? compare(a, b) : compare(b, a)))
}

function makeSortable() {
  for (const table of document.querySelectorAll('table.sortable')) {
    table.querySelectorAll('thead th').forEach((th, column) => {
      const button = document.createElement('button')
      button.type = 'button'
      button.append(...th.childNodes)
      th.append(button)
      button.addEventListener('click', () => sortByColumn(table, th, column))
    })
  }
}

function makeCopyable() { // commands
  if (!navigator.clipboard) return
  for (const pre of document.querySelectorAll('pre')) {
    const box = document.createElement('div')
    const button = document.createElement('button')
    box.className = 'copyable'
    button.type = 'button'
    button.textContent = 'Copy'
    button.addEventListener('click', async () => {
      await navigator.clipboard.writeText(pre.innerText)
      button.textContent = 'Copied'
      setTimeout(() => { button.textContent = 'Copy' }, 2000)
    })
    pre.replaceWith(box)
    box.append(pre, button)
  }
}

function makeLegends() { // point at a name or a line to see it among the others; a click keeps it
  const drawn = [...document.querySelectorAll('[class^="of-"]')]
  let kept = ''
  const show = name => {
    for (const element of drawn) element.classList.toggle('dim', name !== '' && element.classList[0] !== name)
  }
  const nameAt = event => event.target.closest?.('[class^="of-"]')?.classList[0] ?? kept
  const buttons = []
  for (const text of document.querySelectorAll('.legend [class^="of-"] > span')) {
    const button = document.createElement('button')
    button.type = 'button'
    button.append(...text.childNodes)
    button.setAttribute('aria-pressed', 'false')
    button.addEventListener('click', event => {
      kept = kept === nameAt(event) ? '' : nameAt(event)
      for (const b of buttons) b.setAttribute('aria-pressed', b.parentElement.classList[0] === kept)
      show(kept)
    })
    text.replaceWith(button)
    buttons.push(button)
  }
  document.addEventListener('pointerover', event => show(nameAt(event)))
  document.addEventListener('focusin', event => show(nameAt(event)))
  document.addEventListener('focusout', () => show(kept))
}

function printAll() { // what is folded too
  addEventListener('beforeprint', () => {
    for (const details of document.querySelectorAll('details:not([open])')) {
      details.open = true
      addEventListener('afterprint', () => { details.open = false }, { once: true })
    }
  })
}

makeSortable()
makeCopyable()
makeLegends()
printAll()
