package delivery

// budget bounds what is given up for a consumer that succeeds at nothing: each
// event that is dead-lettered for want of attempts, and each escape of a blocked
// event or key from its partition, costs a token, and successes earn them back.
// An outage of the whole consumer so stops the line, visibly, instead of
// flushing a topic into the dead letters.
type budget struct {
	spent  int // of budgetTokens
	earned int // successes towards the next token
}

const (
	budgetTokens = 100
	// budgetEarn successes earn a token: up to a tenth of the events may fail for good for ever.
	budgetEarn = 10
)

// take spends a token; false when none is left.
func (b *budget) take() bool {
	if b.spent >= budgetTokens {
		return false
	}
	b.spent++
	return true
}

// succeeded counts an acknowledged event.
func (b *budget) succeeded() {
	if b.spent == 0 {
		return
	}
	if b.earned++; b.earned >= budgetEarn {
		b.earned = 0
		b.spent--
	}
}
