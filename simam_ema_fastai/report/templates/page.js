// Tables sort by their headings, commands can be copied. Without JavaScript they are tables and text.

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

makeSortable()
makeCopyable()
