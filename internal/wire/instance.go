package wire

import "net/http"

// Leases are their instance's: whoever pulls and settles should come back to it. It
// is named in each answer, and in a cookie by which load balancers can keep a
// client (application cookie stickiness).
const (
	// InstanceMetadata is the name over gRPC.
	InstanceMetadata = "postern-instance"
	instanceHeader   = "Postern-Instance"
	instanceCookie   = "postern_instance"
)

// SetInstance names the instance in an HTTP answer.
func SetInstance(h http.Header, instance string) {
	h.Set(instanceHeader, instance)
	cookie := &http.Cookie{Name: instanceCookie, Value: instance, Path: "/v1/", HttpOnly: true, SameSite: http.SameSiteLaxMode}
	h.Add("Set-Cookie", cookie.String())
}
