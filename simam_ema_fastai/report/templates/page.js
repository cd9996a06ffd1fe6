// Tables sort by their headings. Without JavaScript they are tables.

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

makeSortable()
