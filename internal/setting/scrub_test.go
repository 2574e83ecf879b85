package setting

import "testing"

func TestSecretsThatAreSaidBackAreHidden(t *testing.T) {
	s := NewScrubber("password", "password-and-more", "1", "")
	for text, want := range map[string]string{
		"":                         "",
		"no secret, 1 and 2":       "no secret, 1 and 2",
		"password-and-more":        "***",
		"passwordpassword":         "******",
		"<password> Bearer tok-77": "<***> Bearer ***",
	} {
		if got := string(s.Text([]byte(text), "tok-77", "")); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
	if s := NewScrubber("", "1"); s != nil || string(s.Text([]byte("1 tok-77"), "tok-77")) != "1 ***" {
		t.Error("without secrets, those of now are hidden still")
	}
}
